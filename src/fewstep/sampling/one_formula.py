"""Samplers of one formula: they move the predicted image to the next time with old or new noise."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from fewstep.ranges import Positive, Probability
from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.clipping import clamp, image_and_noise
from fewstep.tables import check_fields


@dataclass(frozen=True)
class Renoise(Step):
    """Replace a share of the noise variance by fresh noise; share 1 is consistency sampling.

    Song et al. 2023, arXiv:2303.01469, algorithm 1.
    """

    share: Probability = 1.0
    """Share of the noise variance to replace, 0 to 1."""
    clip: Positive | None = None
    """Clamp the predicted image to ±clip."""

    def __post_init__(self) -> None:
        check_fields(self, "renoise")

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        # with fresh noise, a flow map predicts the image instead of the state at s
        prediction = context.predict_to(x_t, t, s if self.share == 0 else None)
        x0 = clamp(prediction.x0, self.clip)
        if s is None:
            return x0, None
        alpha_s, sigma_s = context.at(s, like=x_t)
        if self.share == 0:
            return alpha_s * x0 + sigma_s * prediction.eps, None
        noise = math.sqrt(self.share) * context.noise.like(x_t)
        if self.share < 1:
            noise = noise + math.sqrt(1 - self.share) * prediction.eps
        return alpha_s * x0 + sigma_s * noise, None


@dataclass(frozen=True)
class Transfer(Step):
    """Keep the predicted noise: DDIM, and Euler under `Flow` and `VE`.  Song et al. 2010.02502."""

    deterministic: ClassVar[bool] = True
    clip: Positive | None = None
    """Clamp the predicted image to ±clip, but not the predicted noise."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        return Renoise(share=0.0, clip=self.clip)(context, x_t, t, s)


@dataclass(frozen=True)
class Ancestral(Step):
    """DDPM's step: the mean of q(x_s | x_t, x0), and noise of its variance or a larger one.

    Ho et al. 2020, arXiv:2006.11239, section 3.2.
    """

    variance: Literal["posterior", "large"] = "posterior"
    """Noise variance, at eta = 1: that of q, or DDPM's beta_t, which is
    sigma_t² − (alpha_t/alpha_s)²·sigma_s²."""
    eta: Probability = 1.0
    """Factor of the noise's standard deviation, 0 to 1, as in DDIM; the mean is that of DDIM."""
    clip: Positive | None = None
    """Clamp the predicted image to ±clip."""

    def __post_init__(self) -> None:
        check_fields(self, "ancestral")

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        if s is None:
            return clamp(prediction.x0, self.clip), None
        x0, eps = image_and_noise(prediction, self.clip)
        alpha_s, sigma_s = context.at(s, like=x_t)
        log_t, log_s = (context.coefficients(time, x_t).log_ratio for time in (t, s))
        # 1 − (alpha_t·sigma_s/(alpha_s·sigma_t))², without cancellation
        fresh = -math.expm1(2 * float(log_s - log_t))
        share = self.eta**2 * fresh
        mean = alpha_s * x0 + sigma_s * math.sqrt(1 - share) * eps
        spread = math.sqrt(share) * (prediction.sigma if self.variance == "large" else sigma_s)
        return mean + spread * context.noise.like(x_t), None
