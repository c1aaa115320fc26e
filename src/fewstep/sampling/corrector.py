"""A predictor-corrector sampler."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.ranges import Positive
from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.one_formula import Transfer


@dataclass(frozen=True)
class Corrector(Step):
    """A transfer step, then one Langevin step at its end, whose length `snr` sets for each row.

    Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5.
    """

    evaluations: ClassVar[int] = 2
    snr: Positive = 0.16
    """Ratio of the Langevin step's gradient to its noise."""
    clip: Positive | None = None
    """Clamp the image that the transfer step predicts to ±clip."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        x_s, _ = Transfer(clip=self.clip)(context, x_t, t, s)
        if s is None:
            return x_s, None
        prediction = context.predict(x_s, s)
        z, sigma, eps = context.noise.like(x_t), prediction.sigma, prediction.eps
        # in units of sigma², as score = −eps/sigma: length = 2·(snr·|z|/|eps|)² = ½·spread²
        spread = 2 * self.snr * (_norm(z) / _norm(eps))
        return x_s - 0.5 * spread.square() * sigma * eps + spread * sigma * z, None


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
