"""Which times: densities to train under, grids to step on. Both stay within a denoiser's span.

A density turns uniform numbers into times, so that the randomness stays the batch's own. A grid
gives the N times asked, from the span's end downwards in float64; the step after the last of them
ends at the image.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser, check_times
from fewstep.errors import InputError


@dataclass(frozen=True)
class Density(ABC):
    """Where a method spends its training times."""

    @abstractmethod
    def times(self, u: Tensor, denoiser: Denoiser) -> Tensor:
        """The density's quantile at each of `u` in [0, 1), within the denoiser's span."""


@dataclass(frozen=True)
class Uniform(Density):
    """All times alike: DDPM under a table, the plain choice under `Flow`."""

    name: Literal["uniform"] = "uniform"
    low: float = 0.0
    """Where it begins, as a share of the span; distribution matching leaves 0.02 at each end."""
    high: float = 1.0
    """Where it ends, as a share of the span."""

    def __post_init__(self) -> None:
        _check_shares(self.low, self.high)

    def times(self, u: Tensor, denoiser: Denoiser) -> Tensor:
        low, high = denoiser.span
        return low + (high - low) * (self.low + (self.high - self.low) * u)


@dataclass(frozen=True)
class Karras(Density):
    """(sigma/alpha)^(1/rho) is uniform: the indices of a Karras grid, all alike.

    Karras et al. 2022, arXiv:2206.00364, eq. 5; the usual density in distilling EDM networks.
    """

    name: Literal["karras"] = "karras"
    rho: float = 7.0
    """The denser towards the data end the larger this is."""
    low: float = 0.0
    """Where it begins, as a share of the indices from data to noise."""
    high: float = 1.0
    """Where it ends, as a share of the indices."""

    def __post_init__(self) -> None:
        _check_shares(self.low, self.high)

    def times(self, u: Tensor, denoiser: Denoiser) -> Tensor:
        share = self.low + (self.high - self.low) * u.double()
        return karras_times(share, self.rho, denoiser).to(u.dtype)


@dataclass(frozen=True)
class LogNormal(Density):
    """ln(sigma/alpha) ~ N(mean, std²), cut to the span.

    EDM's with (−1.2, 1.2), ECT's with (−1.1, 2.0); under `Flow` this *is* the logit-normal density
    of time.  Karras et al. 2022, arXiv:2206.00364; Esser et al. 2024, arXiv:2403.03206.
    """

    name: Literal["lognormal"] = "lognormal"
    mean: float = -1.2
    """Mean of ln(sigma/alpha)."""
    std: float = 1.2
    """Standard deviation of ln(sigma/alpha)."""

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise InputError(f"a log-normal density needs std > 0, not {self.std}")

    def times(self, u: Tensor, denoiser: Denoiser) -> Tensor:
        process = denoiser.process
        span = torch.tensor(denoiser.span, dtype=torch.float64)
        ends = (torch.log(process.ratio(span)) - self.mean) / self.std
        low, high = torch.special.ndtr(ends).tolist()
        normal = torch.special.ndtri(low + (high - low) * u.double())
        ratio = torch.exp(self.mean + self.std * normal)
        return process.time(ratio).clamp(*denoiser.span).to(u.dtype)


DensityConfig = Uniform | LogNormal | Karras


def karras_times(share: Tensor, rho: float, denoiser: Denoiser) -> Tensor:
    """Times at `share` (0: the data end of the span, 1: its noisy end) of a Karras grid."""
    process = denoiser.process
    span = torch.tensor(denoiser.span, dtype=torch.float64)
    low, high = (process.ratio(span) ** (1 / rho)).tolist()
    if not math.isfinite(high):
        raise InputError("a Karras grid needs a network whose largest noise level is finite")
    return process.time((low + share * (high - low)) ** rho).clamp(*denoiser.span)


def _check_shares(low: float, high: float) -> None:
    if not 0 <= low < high <= 1:
        raise InputError(
            f"a density from {low} to {high}: shares of the span, 0 <= low < high <= 1"
        )


@dataclass(frozen=True)
class Grid(ABC):
    """The times at which a generator asks its network."""

    @property
    def counts(self) -> tuple[int, ...]:
        """The step counts that it was made for; empty: any."""
        return ()

    @abstractmethod
    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        """`steps` falling times."""

    def __call__(self, steps: int, denoiser: Denoiser) -> Tensor:
        """`steps` falling times in float64 on the CPU, checked against the denoiser's span."""
        if steps < 1:
            raise InputError(f"{steps} steps were asked for; a sample takes at least 1")
        times = self.points(steps, denoiser)
        check_times(times, denoiser.span)
        return times


@dataclass(frozen=True)
class UniformGrid(Grid):
    """Equal steps in t: t_i = high − (high − low)·i/N, i = 0 … N−1."""

    name: Literal["uniform"] = "uniform"

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        low, high = denoiser.span
        return high - (high - low) * torch.arange(steps, dtype=torch.float64) / steps


@dataclass(frozen=True)
class KarrasGrid(Grid):
    """Equal steps in ratio^(1/rho), both ends of the span asked.  Karras et al. 2022, eq. 5."""

    name: Literal["karras"] = "karras"
    rho: float = 7.0
    """Steps are the denser at the data end the larger this is."""

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        share = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        return karras_times(1 - share, self.rho, denoiser)


@dataclass(frozen=True)
class FixedGrid(Grid):
    """Chosen times for chosen counts: what a few-step student was trained at."""

    times: tuple[tuple[float, ...], ...]
    """One falling list of times for each count."""
    name: Literal["fixed"] = "fixed"

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(sorted(len(row) for row in self.times))

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        for row in self.times:
            if len(row) == steps:
                return torch.tensor(row, dtype=torch.float64)
        raise InputError(f"{steps} steps were asked for; there are grids for {self.counts}")


GridConfig = UniformGrid | KarrasGrid | FixedGrid
