"""Parametrizations of other projects' networks that fewstep's own recipes do not need."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.parametrization import EDM, Parametrization
from fewstep.ranges import Positive


@dataclass(frozen=True)
class EDMBoundary(EDM):
    """As EDM, but x0 is the input where sigma/alpha is `ratio_min`, as in consistency models.

    Song et al. 2023, arXiv:2303.01469, appendix C, with x_t scaled freely.
    """

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        excess = (sigma - self.ratio_min * alpha).clamp(min=0)
        data = alpha * self.sigma_data
        skip = alpha * self.sigma_data**2 / (excess.square() + data.square())
        return skip, excess * self.sigma_data / self.deviation(alpha, sigma)

    def target_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        skip, out = self.skip_out(alpha, sigma)
        # at the boundary x0 does not depend on the output: b is large there instead of infinite
        out = out.clamp(min=1e-6)
        return (1 - alpha * skip) / out, -sigma * skip / out


@dataclass(frozen=True)
class ScaledScore(Parametrization):
    """The network predicts −eps, the score times sigma, from x_t/alpha: NCSN++ under `VE`.

    The level is ln(sigma/(2·alpha)).  Song et al. 2021, arXiv:2011.13456; Karras et al. 2022,
    arXiv:2206.00364, table 1.
    """

    ratio_min: Positive = 0.02
    ratio_max: Positive = 100.0

    @property
    def ratios(self) -> tuple[float, float]:
        return self.ratio_min, self.ratio_max

    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 1 / alpha

    def level(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.log(0.5 * (sigma / alpha).clamp(self.ratio_min, self.ratio_max))

    def target_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), -torch.ones_like(sigma)
