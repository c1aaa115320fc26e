"""Euler-Maruyama: the reverse SDE in steps of time."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.ranges import Positive
from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.clipping import clamp, clipped_velocity, image_and_noise
from fewstep.tables import check_fields


@dataclass(frozen=True)
class EulerMaruyama(Step):
    """A step of the reverse SDE, dx = (velocity − ½·eta²·g²·score)·dt + eta·g·dw.

    Song et al. 2021, arXiv:2011.13456, eq. 6, with a factor `eta` of the noise. Where alpha is 0, g
    is infinite: that step replaces all noise. The last step returns the predicted image.
    """

    eta: Positive = 1.0
    """Factor of the SDE's noise; 1 is the reverse SDE, and towards 0 it becomes the ODE."""
    clip: Positive | None = None
    """Clamp the predicted image to ±clip; the score is that of the noise that then makes x_t."""

    def __post_init__(self) -> None:
        check_fields(self, "euler-maruyama")

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        if s is None:
            return clamp(prediction.x0, self.clip), None
        variance = self.eta**2 * float(prediction.coefficients.diffusion) * (t - s)
        x0, eps = image_and_noise(prediction, self.clip)
        noise = context.noise.like(x_t)
        if math.isinf(variance):
            alpha_s, sigma_s = context.at(s, like=x_t)
            return alpha_s * x0 + sigma_s * noise, None
        x_s = x_t + (s - t) * clipped_velocity(prediction, self.clip)
        x_s = x_s - 0.5 * variance / prediction.sigma * eps
        return x_s + math.sqrt(variance) * noise, None
