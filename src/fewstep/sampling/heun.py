"""Heun's method for the probability-flow ODE."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fewstep.ranges import Positive
from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.clipping import clamp, clipped_velocity


@dataclass(frozen=True)
class Heun(Step):
    """Second order: the mean of the slopes at both ends; the last step is Euler's.

    Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    deterministic: ClassVar[bool] = True
    evaluations: ClassVar[int] = 2
    clip: Positive | None = None
    """Clamp the predicted image to ±clip; slopes are those of the noise that then makes x_t."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        if s is None:
            return clamp(prediction.x0, self.clip), None
        slope = clipped_velocity(prediction, self.clip)
        ahead = context.predict(x_t + (s - t) * slope, s)
        return x_t + 0.5 * (s - t) * (slope + clipped_velocity(ahead, self.clip)), None
