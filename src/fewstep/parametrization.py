"""What a network sees, and what its output means.

A network is given `scale·x_t` and `level`, and its output stands for `a·x0 + b·eps`, the `row`.
`scale·x_t`, `level` and `row` depend on (alpha, sigma) through their ratio alone, so a network
trained under one process runs under any other. Conversions follow from the row (docs/maths.md):

    D = alpha·b − sigma·a,   x0 = (b·x_t − sigma·output)/D,   eps = (alpha·output − a·x_t)/D
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process import Flow, Process


@dataclass(frozen=True)
class Parametrization(ABC):
    """How a raw network is asked; arguments and results have the shape of `alpha` and `sigma`."""

    noun: ClassVar[str] = "parametrization"
    logarithmic: ClassVar[bool] = (
        False  # levels are logarithms: the backbone's `level_scale` brings them to range
    )

    @property
    @abstractmethod
    def ratios(self) -> tuple[float, float]:
        """The lowest and highest sigma/alpha that the network was trained at."""

    @abstractmethod
    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What x_t is multiplied with at the network's door (c_in)."""

    @abstractmethod
    def level(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The noise level in the units of the network's training (c_noise)."""

    @abstractmethod
    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b): the output stands for a·x0 + b·eps."""

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out): x0 = c_skip·x_t + c_out·output."""
        a, b = self.row(alpha, sigma)
        d = alpha * b - sigma * a
        return b / d, -sigma / d


@dataclass(frozen=True)
class Native(Parametrization):
    """Parametrizations of networks that were trained on one process's own x_t and times."""

    native: Process

    @property
    def ratios(self) -> tuple[float, float]:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        low, high = self.native.ratio(ends).tolist()
        return low, high

    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        t = self._time(alpha, sigma)
        # alpha_native/alpha, and where little signal is left the same thing by sigma
        by_sigma = self.native.sigma(t) / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
        by_alpha = self.native.alpha(t) / alpha.clamp(min=torch.finfo(alpha.dtype).tiny)
        return torch.where(alpha > sigma, by_alpha, by_sigma)

    def level(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._time(alpha, sigma) * self.native.levels

    def _time(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        if isinstance(self.native, Flow):
            return sigma / (alpha + sigma)  # regular, with its derivatives, where alpha is 0
        return self.native.time(sigma / alpha)


@dataclass(frozen=True)
class Eps(Native):
    """The network says the noise: row (0, 1).  Ho et al. 2020, arXiv:2006.11239."""

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(sigma)


@dataclass(frozen=True)
class V(Native):
    """The network says v = (alpha·eps − sigma·x0)/√(alpha² + sigma²).

    Salimans and Ho 2022, arXiv:2202.00512.
    """

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.sqrt(alpha.square() + sigma.square())
        return -sigma / norm, alpha / norm


@dataclass(frozen=True)
class Clean(Native):
    """The network says the image: its output is x0."""

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(alpha), torch.zeros_like(sigma)

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        # exact at sigma = 0 too, where the general rule would divide 0 by 0
        return torch.zeros_like(alpha), torch.ones_like(sigma)


@dataclass(frozen=True)
class Velocity(Native):
    """The network says eps − x0, the velocity under `Flow`.  Lipman et al. 2022, 2210.02747."""

    native: Flow = Flow()

    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 1 / (alpha + sigma)

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(alpha), torch.ones_like(sigma)


@dataclass(frozen=True)
class EDM(Parametrization):
    """Unit variance in, unit variance out, whatever the level.

    scale = 1/√(sigma² + alpha²σ_d²), level = ¼ ln(sigma/alpha) within the trained ratios.
    Karras et al. 2022, arXiv:2206.00364, with x_t scaled freely.
    """

    sigma_data: float = 0.5
    ratio_min: float = 0.002
    ratio_max: float = 80.0

    logarithmic: ClassVar[bool] = True

    @property
    def ratios(self) -> tuple[float, float]:
        return self.ratio_min, self.ratio_max

    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 1 / self._deviation(alpha, sigma)

    def level(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 0.25 * torch.log((sigma / alpha).clamp(self.ratio_min, self.ratio_max))

    def row(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        deviation = self._deviation(alpha, sigma)
        return sigma / (self.sigma_data * deviation), -alpha * self.sigma_data / deviation

    def _deviation(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.sqrt(sigma.square() + (alpha * self.sigma_data).square())
