"""DPM-Solver++ with several predictions, along the probability-flow ODE or the reverse SDE."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from fewstep.coefficients import multistep_factors
from fewstep.ranges import Positive
from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.clipping import clamp
from fewstep.tables import check_fields


@dataclass(frozen=True)
class Multistep(Step):
    """DPM-Solver++ (2M and 3M): extrapolates the image from the last predictions.

    Lu et al. 2022, arXiv:2211.01095. The first steps combine as many predictions as there are, and
    the last one returns the predicted image.
    """

    deterministic: ClassVar[bool] = True
    order: Literal[2, 3] = 2
    """Number of predictions that a step combines: 2 (2M) or 3 (3M, the teacher of SFD)."""
    clip: Positive | None = None
    """Clamp each predicted image to ±clip before the last ones are combined."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        image = clamp(prediction.x0, self.clip)
        if s is None:
            return image, None
        gain = prediction.coefficients.log_ratio - context.coefficients(s, x_t).log_ratio
        gains, images = _with_earlier(context, gain, image)
        x0 = _extrapolate(gains, images)
        alpha_s, sigma_s = context.at(s, like=x_t)
        x_s = alpha_s * x0 + sigma_s / prediction.sigma * (x_t - prediction.alpha * x0)
        return x_s, (gains[: self.order - 1], images[: self.order - 1])


@dataclass(frozen=True)
class StochasticMultistep(Step):
    """SDE-DPM-Solver++ (2M): extrapolates the image as `Multistep` does, and adds fresh noise.

    Lu et al. 2022, arXiv:2211.01095, with a factor `eta` of the reverse SDE's noise. The last step
    returns the predicted image.
    """

    order: Literal[1, 2] = 2
    """Number of predictions that a step combines. 1 is `Ancestral`, if eta is 1."""
    eta: Positive = 1.0
    """Factor of the SDE's noise; 1 is the reverse SDE, and towards 0 it becomes `Multistep`."""
    clip: Positive | None = None
    """Clamp each predicted image to ±clip before the last ones are combined."""

    def __post_init__(self) -> None:
        check_fields(self, "stochastic-multistep")

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        image = clamp(prediction.x0, self.clip)
        if s is None:
            return image, None
        gain = prediction.coefficients.log_ratio - context.coefficients(s, x_t).log_ratio
        gains, images = _with_earlier(context, gain, image)
        x0 = _extrapolate(gains, images)
        alpha_s, sigma_s = context.at(s, like=x_t)
        decay = self.eta * float(gain)
        x_s = sigma_s / prediction.sigma * (math.exp(-decay) * x_t)
        x_s = x_s - alpha_s * (math.expm1(-float(gain) - decay) * x0)
        x_s = x_s + sigma_s * (math.sqrt(-math.expm1(-2 * decay)) * context.noise.like(x_t))
        return x_s, (gains[: self.order - 1], images[: self.order - 1])


def _with_earlier(
    context: StepContext, gain: Tensor, image: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """The gains of this step and the last ones, and the predicted images; the newest first."""
    if context.memory is None:
        return [gain], [image]
    return [gain, *context.memory[0]], [image, *context.memory[1]]


def _extrapolate(gains: Sequence[Tensor], images: Sequence[Tensor]) -> Tensor:
    """The image of a step, from the predicted ones."""
    x0 = images[0]
    pairs = zip(multistep_factors(gains), images[:-1], images[1:], strict=True)
    for factor, newer, older in pairs:
        x0 = x0 + factor.to(x0.dtype) * (newer - older)
    return x0
