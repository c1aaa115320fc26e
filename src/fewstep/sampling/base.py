"""The base class of samplers, and what one of their steps receives."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.coefficients import Coefficients
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser, Prediction
from fewstep.noise import RowNoise


@dataclass
class StepContext:
    """What a step needs besides the state x_t."""

    model: Denoiser
    cond: Condition | None
    noise: RowNoise
    memory: Any = None
    """What the previous step of this sample returned; None at the first."""
    table: Mapping[float, Coefficients] = field(default_factory=dict[float, Coefficients])
    """The coefficients at the sample's times; those at other times are computed when used."""
    times: Sequence[float] = ()
    """The times of the sample; empty for a step by itself."""

    def predict(self, x_t: Tensor, t: float) -> Prediction:
        """The network's prediction at `t`; of a flow map, with `t` as its destination."""
        return self.model(x_t, self.coefficients(t, x_t), cond=self.cond)

    def predict_to(self, x_t: Tensor, t: float, s: float | None) -> Prediction:
        """As `predict`, but a flow map's destination is `s`; None stands for the image."""
        if not self.model.is_flow_map:
            return self.predict(x_t, t)
        end = self.coefficients(self.model.span[0] if s is None else s, x_t)
        return self.model(x_t, self.coefficients(t, x_t), s=end, cond=self.cond)

    def at(self, t: float, *, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at `t`, of shape (b, 1, ...) to multiply the batch `like` (b, ...)."""
        at, shape = self.coefficients(t, like), (like.shape[0], *[1] * (like.ndim - 1))
        alpha = at.alpha.to(like.device, non_blocking=like.is_cuda)
        sigma = at.sigma.to(like.device, non_blocking=like.is_cuda)
        return alpha.expand(shape), sigma.expand(shape)

    def noisier(self, t: float, factor: float) -> float:
        """The time whose sigma/alpha is `factor` times that at `t`, at most the span's end."""
        process, end = self.model.process, self.model.span[1]
        ratio = factor * process.ratio(torch.tensor(t, dtype=torch.float64))
        return min(float(process.time(ratio)), end)

    def coefficients(self, t: float, like: Tensor) -> Coefficients:
        """The coefficients at `t`, as numbers of the type of `like`, and at least float32."""
        entry = self.table.get(t)
        if entry is None or entry.alpha.dtype != like.dtype:
            return self.model.coefficients(t, like)
        return entry


class Step(ABC):
    """Base class of samplers: one step from a time to the next.

    A step is a frozen dataclass; its fields are its settings, in recipes and in weights.
    """

    noun: ClassVar[str] = "sampler"
    deterministic: ClassVar[bool] = False
    """Whether images are a function of the starting noise alone, as recording requires."""
    evaluations: ClassVar[int] = 1
    """Network calls of a step; the last step, which ends at the image, may need fewer."""
    own_grid: ClassVar[bool] = False
    """Whether its grids suit no other sampler: then `with_sampler` does not pass them on."""

    @abstractmethod
    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        """Step from `x_t` (b, ...) at time t to time s, or to the image if s is None.

        Returns the new state, and the value of `context.memory` at the next step.
        """
