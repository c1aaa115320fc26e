"""What a network sees, and what its output means.

The network's inputs are `scale·x_t` and `level`; its output estimates `a·x0 + b·eps`, with (a, b)
the `target_coefficients`. All three depend on (alpha, sigma) through their ratio alone, so a
network that was trained under one process runs under any other. Conversions follow (docs/maths.md):

    D = alpha·b − sigma·a,   x0 = (b·x_t − sigma·output)/D,   eps = (alpha·output − a·x_t)/D
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.process import Flow, Process, broadcast_to

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Parametrization(ABC):
    """Base class of parametrizations; all functions are elementwise in `alpha` and `sigma`."""

    noun: ClassVar[str] = "parametrization"
    logarithmic: ClassVar[bool] = False
    """Whether levels are logarithms, which a backbone multiplies with its `level_scale`."""

    def bind(self, process: Process) -> "Parametrization":
        """The parametrization of a network that is trained under `process`.

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
    """The process that the network was trained under; None means that of its `Denoiser`."""

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

    sigma_data: float = 0.5
    ratio_min: float = 0.002
    ratio_max: float = 80.0

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


class Coefficients:
    """alpha, sigma and all that follows from them at given times, each computed at its first use.

    `x0`, `eps` and `velocity` are pairs (p, q) that make them from a network's input and output:
    p·x_t + q·output. With one time per row, values have shape (b, 1, ...), to multiply a batch;
    those of `tabulate` are numbers: tensors without dimensions, on the CPU.
    """

    def __init__(
        self,
        process: Process,
        parametrization: Parametrization,
        t: Tensor,
        alpha: Tensor,
        sigma: Tensor,
    ) -> None:
        self.process = process
        self.parametrization = parametrization
        self.t = t
        self.alpha = alpha
        self.sigma = sigma

    @cached_property
    def scale(self) -> Tensor:
        """Factor of x_t at the network's input."""
        return self.parametrization.scale(self.alpha, self.sigma)

    @cached_property
    def level(self) -> Tensor:
        """Noise level, before a backbone's `level_scale`."""
        return self.parametrization.level(self.alpha, self.sigma)

    @cached_property
    def log_ratio(self) -> Tensor:
        """ln(sigma/alpha)."""
        return torch.log(self.sigma / self.alpha)

    @cached_property
    def target_coefficients(self) -> Pair:
        """(a, b): the output estimates a·x0 + b·eps."""
        return self.parametrization.target_coefficients(self.alpha, self.sigma)

    @cached_property
    def x0(self) -> Pair:
        """(c_skip, c_out)."""
        return self.parametrization.skip_out(self.alpha, self.sigma)

    @cached_property
    def eps(self) -> Pair:
        """(−a, alpha)/D."""
        a, b = self.target_coefficients
        d = self.alpha * b - self.sigma * a
        return -a / d, self.alpha / d

    @cached_property
    def velocity(self) -> Pair:
        """alpha'·x0 + sigma'·eps, with the pairs of x0 and eps."""
        alpha_rate, sigma_rate = (
            broadcast_to(rate, self.alpha) for rate in self.process.rates(self.t)
        )
        (skip, out), (p, q) = self.x0, self.eps
        return alpha_rate * skip + sigma_rate * p, alpha_rate * out + sigma_rate * q


class _Table(Coefficients):
    """The coefficients at several times, in float64; `column` casts them."""

    def __init__(
        self, process: Process, parametrization: Parametrization, t: Tensor, dtype: torch.dtype
    ) -> None:
        super().__init__(process, parametrization, t, process.alpha(t), process.sigma(t))
        self.dtype = dtype
        self._columns: dict[str, tuple[tuple[Tensor, ...], ...]] = {}

    def column(self, name: str) -> tuple[tuple[Tensor, ...], ...]:
        """The numbers `name` of all times, or those of both parts of a pair; cast at first use."""
        if name not in self._columns:
            values = getattr(self, name)
            values = values if isinstance(values, tuple) else (values,)
            self._columns[name] = tuple(value.to(self.dtype).unbind() for value in values)
        return self._columns[name]


class _Entry(Coefficients):
    """The coefficients at one time of a table, as numbers."""

    def __init__(self, table: _Table, index: int) -> None:
        self._table, self._index = table, index
        t, alpha, sigma = (self._pick(name) for name in ("t", "alpha", "sigma"))
        super().__init__(table.process, table.parametrization, t, alpha, sigma)

    def _pick(self, name: str) -> Tensor:
        (values,) = self._table.column(name)
        return values[self._index]

    def _pick_pair(self, name: str) -> Pair:
        first, second = self._table.column(name)
        return first[self._index], second[self._index]

    @cached_property
    def scale(self) -> Tensor:
        return self._pick("scale")

    @cached_property
    def level(self) -> Tensor:
        return self._pick("level")

    @cached_property
    def log_ratio(self) -> Tensor:
        # in float64, as those of neighbouring times are close
        return self._table.log_ratio[self._index]

    @cached_property
    def target_coefficients(self) -> Pair:
        return self._pick_pair("target_coefficients")

    @cached_property
    def x0(self) -> Pair:
        return self._pick_pair("x0")

    @cached_property
    def eps(self) -> Pair:
        return self._pick_pair("eps")

    @cached_property
    def velocity(self) -> Pair:
        return self._pick_pair("velocity")


def tabulate(
    process: Process, parametrization: Parametrization, times: Iterable[float], dtype: torch.dtype
) -> dict[float, Coefficients]:
    """The coefficients at each of `times`, computed in one batch in float64, then cast to `dtype`.

    A sampler's times are known at its start; computing each by itself takes longer than the rest
    of its step.
    """
    points = list(times)
    t = torch.tensor(points, dtype=torch.float64)
    table = _Table(process, parametrization, t, dtype)
    return {point: _Entry(table, index) for index, point in enumerate(points)}
