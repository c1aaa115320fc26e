"""Heun's method for the probability-flow ODE, and EDM's stochastic sampler around it."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fewstep.ranges import NonNegative, Positive
from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.clipping import clamp, clipped_velocity, image_and_noise
from fewstep.tables import check_fields

LARGEST_CHURN = math.sqrt(2) - 1
"""Largest share by which a step raises sigma/alpha: it doubles the variance at most."""


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


@dataclass(frozen=True)
class StochasticHeun(Step):
    """EDM's stochastic sampler: adds noise ("churn"), then takes a step of Heun's method.

    Karras et al. 2022, arXiv:2206.00364, algorithm 2, in x_t/alpha as a function of sigma/alpha,
    under any process; the defaults are those of ImageNet at 64×64, table 5. Noise is not raised
    above the network's span. A step from alpha = 0, and the last one, is Euler's.
    """

    evaluations: ClassVar[int] = 2
    s_churn: NonNegative = 40.0
    """A step raises sigma/alpha by the share s_churn/steps, at most √2 − 1."""
    s_min: NonNegative = 0.05
    """Lowest sigma/alpha at which noise is added."""
    s_max: NonNegative = 50.0
    """Highest sigma/alpha at which noise is added."""
    s_noise: Positive = 1.003
    """Factor of the noise's standard deviation, slightly above 1 against a loss of detail."""
    clip: Positive | None = None
    """Clamp the predicted image to ±clip; slopes are those of the noise that then makes x_t."""

    def __post_init__(self) -> None:
        check_fields(self, "stochastic-heun")

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        x_t, t = self._add_noise(context, x_t, t)
        prediction = context.predict(x_t, t)
        if s is None:
            return clamp(prediction.x0, self.clip), None
        x0, eps = image_and_noise(prediction, self.clip)
        alpha_s, sigma_s = context.at(s, like=x_t)
        # Euler's step, which is finite from alpha = 0 too
        x_s = alpha_s * x0 + sigma_s * eps
        ratio_t, ratio_s = (_ratio(context, time, x_t) for time in (t, s))
        if math.isinf(ratio_t):
            return x_s, None
        _, eps_ahead = image_and_noise(context.predict(x_s, s), self.clip)
        return x_s + alpha_s * (0.5 * (ratio_s - ratio_t) * (eps_ahead - eps)), None

    def _add_noise(self, context: StepContext, x_t: Tensor, t: float) -> tuple[Tensor, float]:
        """The state with more noise, and its time."""
        ratio = _ratio(context, t, x_t)
        if not self.s_min <= ratio <= self.s_max or math.isinf(ratio):
            return x_t, t
        churn = min(self.s_churn / max(len(context.times), 1), LARGEST_CHURN)
        raised = context.noisier(t, 1 + churn)
        if raised <= t:
            return x_t, t
        spread = self.s_noise * math.sqrt(_ratio(context, raised, x_t) ** 2 - ratio**2)
        alpha = context.coefficients(t, x_t).alpha
        alpha_raised, _ = context.at(raised, like=x_t)
        return alpha_raised * (x_t / alpha + spread * context.noise.like(x_t)), raised


def _ratio(context: StepContext, t: float, like: Tensor) -> float:
    """sigma/alpha at `t`."""
    return math.exp(float(context.coefficients(t, like).log_ratio))
