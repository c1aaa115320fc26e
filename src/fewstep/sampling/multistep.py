"""Samplers that combine the predictions of several steps."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from fewstep.coefficients import multistep_factors
from fewstep.ranges import Positive
from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.clipping import clamp


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
        gains, images = [gain], [image]
        if context.memory is not None:
            gains, images = gains + context.memory[0], images + context.memory[1]
        x0 = image
        pairs = zip(multistep_factors(gains), images[:-1], images[1:], strict=True)
        for factor, newer, older in pairs:
            x0 = x0 + factor.to(x0.dtype) * (newer - older)
        alpha_s, sigma_s = context.at(s, like=x_t)
        x_s = alpha_s * x0 + sigma_s / prediction.sigma * (x_t - prediction.alpha * x0)
        return x_s, (gains[: self.order - 1], images[: self.order - 1])
