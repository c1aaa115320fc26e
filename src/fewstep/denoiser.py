"""A backbone with a process and a parametrization: teachers, students, fake scores, EMA targets.

`Denoiser.forward` scales the input, converts times to levels, sets the precision, and returns
a `Prediction`: the network's output, which can be read as x0, eps, v, score or velocity.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.backbones import Backbone, set_pace, with_two_times
from fewstep.coefficients import Coefficients, Pair, tabulate
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.guidance import Guided
from fewstep.parametrization import Parametrization
from fewstep.precision import compute_in
from fewstep.process import Process, as_times
from fewstep.ranges import Precision

Time = Tensor | float | Coefficients
"""One time for all rows, a vector (b,) of times, or the coefficients of either."""

SPAN_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Prediction:
    """A network's raw `output` (b, ...) at `x_t` (b, ...), and its meaning.

    Both tensors are in float32 or float64.
    """

    x_t: Tensor
    output: Tensor
    coefficients: Coefficients

    @property
    def alpha(self) -> Tensor:
        """Signal scale, one number or of shape (b, 1, ...)."""
        return self.coefficients.alpha

    @property
    def sigma(self) -> Tensor:
        """Noise scale, one number or of shape (b, 1, ...)."""
        return self.coefficients.sigma

    @property
    def x0(self) -> Tensor:
        """The predicted image: c_skip·x_t + c_out·output."""
        return self._combine(self.coefficients.x0)

    @property
    def eps(self) -> Tensor:
        """The predicted noise: (alpha·output − a·x_t)/D."""
        return self._combine(self.coefficients.eps)

    @property
    def v(self) -> Tensor:
        """(alpha·eps − sigma·x0)/√(alpha² + sigma²)."""
        norm = torch.sqrt(self.alpha.square() + self.sigma.square())
        return (self.alpha * self.eps - self.sigma * self.x0) / norm

    @property
    def score(self) -> Tensor:
        """The gradient of ln p(x_t): −eps/sigma."""
        return -self.eps / self.sigma

    @property
    def velocity(self) -> Tensor:
        """dx_t/dt along the probability-flow ODE: alpha'·x0 + sigma'·eps."""
        return self._combine(self.coefficients.velocity)

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """The output of an exact network where x_t is made of `x0` and `eps`: a·x0 + b·eps."""
        a, b = self.coefficients.target_coefficients
        return a * x0 + b * eps

    def _combine(self, pair: Pair) -> Tensor:
        p, q = pair
        return p * self.x_t + q * self.output


class Denoiser(nn.Module):
    """A `backbone` under a `process`, whose output `parametrization` interprets.

    `precision` is the number format that the backbone computes in; weights keep their own.
    A backbone whose settings leave its pace open gets that of the parametrization, in place.
    `is_flow_map` means that the backbone takes a destination time too, which samplers then pass.
    `span` is the lowest and highest time at which the network was trained; None: those of the
    parametrization's ratios.  Raises: InputError unless 0 <= low < high <= 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        process: Process,
        parametrization: Parametrization,
        *,
        precision: Precision = "f32",
        is_flow_map: bool = False,
        span: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.is_flow_map = is_flow_map
        self.process = process
        self.parametrization = parametrization.bind(process.input_process)
        set_pace(backbone, self.parametrization.pace)
        self.precision: Precision = precision
        self.span = self.natural_span if span is None else span
        if not 0 <= self.span[0] < self.span[1] <= 1:
            raise InputError(f"span is {list(self.span)}; it must be 0 <= low < high <= 1")

    @property
    def natural_span(self) -> tuple[float, float]:
        """The times of the parametrization's lowest and highest sigma/alpha."""
        ratios = torch.tensor(self.parametrization.ratios, dtype=torch.float64)
        low, high = self.process.time(ratios).tolist()
        return low, high

    def error_factor(self, t: float) -> float:
        """Factor by which an error of the output at time `t` is larger in the image: |c_out|.

        For an eps network it is sigma/alpha, and infinite where alpha is 0.
        """
        alpha, sigma = (
            f(torch.tensor([t], dtype=torch.float64))
            for f in (self.process.alpha, self.process.sigma)
        )
        factor = self.parametrization.skip_out(alpha, sigma)[1].abs().item()
        return math.inf if math.isnan(factor) else factor

    def forward(
        self,
        x_t: Tensor,
        t: Time,
        *,
        s: Time | None = None,
        cond: Condition | None = None,
    ) -> Prediction:
        """Predict from `x_t` (b, ...) at `t`; `s` is a flow map's destination, s < t."""
        at = self.coefficients(t, x_t)
        level_s = None if s is None else self._level(self.coefficients(s, x_t), x_t)
        x_t = _single_or_double(x_t)
        settings: dict[str, Any] = {"at": at} if isinstance(self.backbone, Guided) else {}
        with self.precision_context(x_t):
            output = self.backbone(
                at.scale * x_t, self._level(at, x_t), level_s=level_s, cond=cond, **settings
            )
        return Prediction(x_t, output.to(x_t.dtype), at)

    def interpret(self, x_t: Tensor, t: Time, output: Tensor) -> Prediction:
        """The prediction whose raw output at `x_t` and `t` is `output`."""
        x_t = _single_or_double(x_t)
        return Prediction(x_t, output.to(x_t.dtype), self.coefficients(t, x_t))

    def coefficients(self, t: Time, like: Tensor) -> Coefficients:
        """The coefficients at `t`, to multiply the batch `like` (b, ...)."""
        if isinstance(t, Coefficients):
            return t
        if not isinstance(t, Tensor):
            return self.tabulate([t], like)[t]
        time = as_times(t, like)
        alpha, sigma = self.process.at(time, like=like)
        return Coefficients(self.process, self.parametrization, time, alpha, sigma)

    def tabulate(self, times: Iterable[float], like: Tensor) -> dict[float, Coefficients]:
        """The coefficients at each of `times`, in float32 or, if `like` has that type, float64."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        return tabulate(self.process, self.parametrization, times, dtype)

    def network_inputs(self, t: Time, like: Tensor) -> tuple[Tensor, Tensor]:
        """The factor of x_t at the network's input, to multiply `like` (b, ...); levels (b,)."""
        at = self.coefficients(t, like)
        return at.scale, self._level(at, like)

    def _level(self, at: Coefficients, like: Tensor) -> Tensor:
        level = at.level
        if self.parametrization.logarithmic:
            level = level * self.backbone.level_scale
        if level.ndim:
            return level.flatten()
        # without waiting for the device's queue, which a copy from the CPU does by default
        return level.to(like.device, non_blocking=like.is_cuda).expand(like.shape[0])

    def features(self, x_t: Tensor, t: Time, *, cond: Condition | None = None) -> list[Tensor]:
        """The backbone's activations at `x_t`, for adversarial heads, in float32 or float64."""
        scale, level = self.network_inputs(t, x_t)
        x_t = _single_or_double(x_t)
        with self.precision_context(x_t):
            layers = self.backbone.features(scale * x_t, level, cond=cond)
        return [layer.to(x_t.dtype) for layer in layers]

    def under(self, process: Process) -> "Denoiser":
        """The same network under another process; a span of its own, and an interval of guidance,
        keep their sigma/alpha."""
        span, backbone = None, self.backbone
        if isinstance(backbone, Guided):
            backbone = backbone.under(self.process, process)
        # a network of VE borrows its inputs from a process that says nothing of its training
        native = getattr(self.parametrization, "native", self.process)
        borrows = native != self.process and native == self.process.input_process
        if borrows or self.span != self.natural_span:
            ratios = self.process.ratio(torch.tensor(self.span, dtype=torch.float64))
            span = tuple(process.time(ratios).tolist())
        return self.replace(backbone=backbone, process=process, span=span)

    def as_flow_map(self) -> "Denoiser":
        """The same network with an input for the destination, which has no effect at first."""
        return self.replace(backbone=with_two_times(self.backbone), is_flow_map=True)

    def replace(self, **changes: Any) -> "Denoiser":
        """A denoiser with the same modules and arguments, but for `changes` of the arguments."""
        names = ("backbone", "process", "parametrization", "precision", "is_flow_map", "span")
        return Denoiser(**{**{name: getattr(self, name) for name in names}, **changes})

    def precision_context(self, x: Tensor) -> AbstractContextManager[object]:
        """A context in which the network computes in `precision`, on the device of `x`."""
        return compute_in(self.precision, x.device.type)


def _single_or_double(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def check_times(times: Tensor, span: tuple[float, float]) -> None:
    """Check that times lie within `span`, with a tolerance of 1e-5.  Raises: InputError."""
    low, high = span
    lowest, highest = float(times.min()), float(times.max())
    if lowest < low - SPAN_TOLERANCE or highest > high + SPAN_TOLERANCE:
        raise InputError(
            f"times run from {highest:.6g} down to {lowest:.6g}, but this network was trained for "
            f"t in [{low:.6g}, {high:.6g}]; use a grid within this span"
        )
