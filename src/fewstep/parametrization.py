"""What a network sees, and what its output means.

The network's inputs are `scale·x_t` and `level`; its output estimates `a·x0 + b·eps`, with (a, b)
the `target_coefficients`. All three depend on (alpha, sigma) through their ratio alone, so a
network that was trained under one process runs under any other. Conversions follow (docs/maths.md):

    D = alpha·b − sigma·a,   x0 = (b·x_t − sigma·output)/D,   eps = (alpha·output − a·x_t)/D
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process import Flow, Process
from fewstep.ranges import Positive


@dataclass(frozen=True)
class Parametrization(ABC):
    """Base class of parametrizations; all functions are elementwise in `alpha` and `sigma`."""

    noun: ClassVar[str] = "parametrization"
    logarithmic: ClassVar[bool] = False
    """Whether levels are logarithms, which a backbone multiplies with its `level_scale`."""

    @property
    def pace(self) -> float:
        """Factor of the embedding's frequencies in networks whose settings leave it open.

        Native levels have DDPM's, 1. Logarithms have 0.004, which makes the frequencies EDM's at
        the usual `level_scale` of 250.
        """
        return 0.004 if self.logarithmic else 1.0

    def bind(self, process: Process) -> "Parametrization":
        """The parametrization of a network whose inputs are the x_t and times of `process`.

        It differs from this one only if this one has a `native` process that is None.
        """
        return self

    @property
    @abstractmethod
    def ratios(self) -> tuple[float, float]:
        """The lowest and highest sigma/alpha at which the network was trained."""

    @abstractmethod
    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Factor of x_t at the network's input (c_in)."""

    @abstractmethod
    def level(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Noise level in the units that the network was trained with (c_noise)."""

    @abstractmethod
    def target_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(a, b): the output estimates a·x0 + b·eps."""

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_skip, c_out): x0 = c_skip·x_t + c_out·output."""
        a, b = self.target_coefficients(alpha, sigma)
        d = alpha * b - sigma * a
        return b / d, -sigma / d


@dataclass(frozen=True)
class Native(Parametrization):
    """Base class for networks that were trained on the x_t and times of the process `native`."""

    native: Process | None = None
    """The process of the x_t and times that the network takes as inputs; None means the
    `input_process` of its `Denoiser`'s process."""

    def bind(self, process: Process) -> Parametrization:
        return self if self.native else replace(self, native=process)

    @property
    def process(self) -> Process:
        """The process `native`.  Raises: ValueError if it is None."""
        if self.native is None:
            raise ValueError(f"{self} has no native process: call bind(process) first")
        return self.native

    @property
    def ratios(self) -> tuple[float, float]:
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        low, high = self.process.ratio(ends).tolist()
        return low, high

    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        if isinstance(self.native, Flow):
            return 1 / (alpha + sigma)
        t = self._time(alpha, sigma)
        # alpha_native/alpha, which equals sigma_native/sigma: divide by the larger of the two
        by_sigma = self.process.sigma(t) / sigma.clamp(min=torch.finfo(sigma.dtype).tiny)
        by_alpha = self.process.alpha(t) / alpha.clamp(min=torch.finfo(alpha.dtype).tiny)
        return torch.where(alpha > sigma, by_alpha, by_sigma)

    def level(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._time(alpha, sigma) * self.process.levels

    def _time(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        if isinstance(self.native, Flow):
            return sigma / (alpha + sigma)  # finite, as are its derivatives, where alpha is 0
        return self.process.time(sigma / alpha)


@dataclass(frozen=True)
class Eps(Native):
    """The network predicts the noise: a = 0, b = 1.  Ho et al. 2020, arXiv:2006.11239."""

    def target_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(alpha), torch.ones_like(sigma)


@dataclass(frozen=True)
class V(Native):
    """The network predicts v = (alpha·eps − sigma·x0)/√(alpha² + sigma²).

    Salimans and Ho 2022, arXiv:2202.00512.
    """

    def target_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        norm = torch.sqrt(alpha.square() + sigma.square())
        return -sigma / norm, alpha / norm


@dataclass(frozen=True)
class Clean(Native):
    """The network predicts the image: its output is x0."""

    def target_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(alpha), torch.zeros_like(sigma)

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        # exact at sigma = 0 too, where the general rule would divide 0 by 0
        return torch.zeros_like(alpha), torch.ones_like(sigma)


@dataclass(frozen=True)
class Velocity(Native):
    """The network predicts eps − x0, the velocity under `Flow`.  Lipman et al. 2022, 2210.02747."""

    def target_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(alpha), torch.ones_like(sigma)


@dataclass(frozen=True)
class EDM(Parametrization):
    """Input and output of the network have unit variance at every level.

    scale = 1/√(sigma² + alpha²σ_d²), level = ¼ ln(sigma/alpha) within the trained ratios.
    Karras et al. 2022, arXiv:2206.00364, with x_t scaled freely.
    """

    sigma_data: Positive = 0.5
    ratio_min: Positive = 0.002
    ratio_max: Positive = 80.0

    logarithmic: ClassVar[bool] = True

    @property
    def ratios(self) -> tuple[float, float]:
        return self.ratio_min, self.ratio_max

    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 1 / self.deviation(alpha, sigma)

    def level(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 0.25 * torch.log((sigma / alpha).clamp(self.ratio_min, self.ratio_max))

    def target_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        deviation = self.deviation(alpha, sigma)
        return sigma / (self.sigma_data * deviation), -alpha * self.sigma_data / deviation

    def deviation(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Standard deviation of x_t."""
        return torch.sqrt(sigma.square() + (alpha * self.sigma_data).square())


@dataclass(frozen=True)
class Mixed(Parametrization):
    """The network sees the inputs of one parametrization, and predicts the quantity of another.

    So a copied network can learn to predict another quantity with its inputs unchanged.
    """

    inputs: Parametrization
    outputs: Parametrization

    @property
    def logarithmic(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inputs.logarithmic

    def bind(self, process: Process) -> Parametrization:
        return replace(self, inputs=self.inputs.bind(process), outputs=self.outputs.bind(process))

    @property
    def ratios(self) -> tuple[float, float]:
        (low, high), (other_low, other_high) = self.inputs.ratios, self.outputs.ratios
        return max(low, other_low), min(high, other_high)

    def scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.inputs.scale(alpha, sigma)

    def level(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.inputs.level(alpha, sigma)

    def target_coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.outputs.target_coefficients(alpha, sigma)

    def skip_out(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return self.outputs.skip_out(alpha, sigma)
