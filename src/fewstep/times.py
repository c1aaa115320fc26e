"""Which times: densities to train under, grids to step on, and pairs of neighbouring levels.

A density turns uniform numbers into times, so that the randomness stays the batch's own. A grid
gives the N times asked, from the span's end downwards in float64; the step after the last of them
ends at the image.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser, check_times
from fewstep.errors import InputError


@dataclass(frozen=True)
class Density(ABC):
    """Where a method spends its training times."""

    noun: ClassVar[str] = "density"

    @abstractmethod
    def times(self, u: Tensor, denoiser: Denoiser) -> Tensor:
        """The density's quantile at each of `u` in [0, 1), within the denoiser's span."""


@dataclass(frozen=True)
class Uniform(Density):
    """All times alike: DDPM under a table, the plain choice under `Flow`."""

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

    noun: ClassVar[str] = "grid"

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

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        low, high = denoiser.span
        return high - (high - low) * torch.arange(steps, dtype=torch.float64) / steps


@dataclass(frozen=True)
class KarrasGrid(Grid):
    """Equal steps in ratio^(1/rho), both ends of the span asked.  Karras et al. 2022, eq. 5."""

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

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(sorted(len(row) for row in self.times))

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        for row in self.times:
            if len(row) == steps:
                return torch.tensor(row, dtype=torch.float64)
        raise InputError(f"{steps} steps were asked for; there are grids for {self.counts}")


@dataclass(frozen=True)
class Levels(ABC):
    """The two noise levels that a consistency loss compares."""

    noun: ClassVar[str] = "levels"

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The lowest and highest sigma/alpha, within what the network is trained for."""

    @abstractmethod
    def around(self, ratio: Tensor, step: int, ends: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        """The two ratios sigma/alpha (b,) around `ratio`, and the gap of the weight 1/gap.

        `ratio` (b,) is drawn from the density, `step` counts training steps, and `ends` are the
        ratios at the ends of the span.
        """


@dataclass(frozen=True)
class EctLevels(Levels):
    """ECT's rule: r = t·(1 − q^−(stage+1)·(1 + k·sigmoid(−b·t)))."""

    clock: Literal["ratio", "flow"] = "ratio"
    """What t and r count: sigma/alpha, or Flow's time sigma/(alpha + sigma)."""
    q: float = 2.0
    """The gap shrinks by this factor from stage to stage; a large one starts with small gaps."""
    k: float = 8.0
    """The gap's widening towards small levels."""
    b: float = 1.0
    """How fast that widening fades with the level."""
    double_every: int = 0
    """Steps a stage lasts; 0: one stage throughout."""

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, math.inf

    def __post_init__(self) -> None:
        if self.q <= 1 or self.double_every < 0:
            raise InputError("method.levels: q must be above 1, and double_every at least 0")

    def around(self, ratio: Tensor, step: int, ends: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        """The two ratios sigma/alpha, and t − r, where the density drew `ratio` in the span."""
        flow = self.clock == "flow"
        stage = step // self.double_every if self.double_every else 0
        t = 1 / (1 + 1 / ratio) if flow else ratio
        share = self.q ** -(stage + 1) * (1 + self.k * torch.sigmoid(-self.b * t))
        r = (t * (1 - share)).clamp(min=0)
        return ratio, r / (1 - r) if flow else r, t - r


@dataclass(frozen=True)
class DiscreteLevels(Levels):
    """N levels, evenly spaced in ratio^(1/7); the pair are those around the level drawn.

    With s0 = `first`, s1 = `last`, K = `length`: `double` is iCT's, min(s0·2^⌊step/K'⌋, s1) + 1,
    K' = ⌊K/(log2⌊s1/s0⌋ + 1)⌋; `root` CT's, ⌈√(step/K·((s1+1)² − s0²) + s0²) − 1⌉ + 1.
    """

    growth: Literal["double", "root", "fixed"] = "double"
    """How N grows; `fixed` (CD's) is N = first throughout."""
    first: int = 10
    """s0: where N begins; with `double` it begins one above."""
    last: int = 1280
    """s1: N ends one above it."""
    length: int = 400_000
    """K, the steps over which N grows."""
    ratios: tuple[float, float] = (0.002, 80.0)
    """The lowest and highest sigma/alpha, within what the network is trained for."""

    @property
    def bounds(self) -> tuple[float, float]:
        return self.ratios

    def __post_init__(self) -> None:
        fits = 0 < self.ratios[0] < self.ratios[1] < math.inf and self.length > 0
        if not fits or self.first < 2 or (self.last < self.first and self.growth != "fixed"):
            raise InputError(
                "method.levels: give 2 <= first <= last, length > 0, rising ratios > 0"
            )

    def count(self, step: int) -> int:
        """N at `step`."""
        s0, s1 = self.first, self.last
        if self.growth == "fixed":
            return s0
        if self.growth == "root":
            share = min(step / self.length, 1.0)
            return math.ceil(math.sqrt(share * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
        stretch = max(math.floor(self.length / (math.log2(s1 // s0) + 1)), 1)
        return min(s0 * 2 ** min(step // stretch, 64), s1) + 1

    def around(self, ratio: Tensor, step: int, ends: list[float]) -> tuple[Tensor, Tensor, Tensor]:
        """The upper and lower neighbour of `ratio` on a ladder between `ends`, and the gap."""
        low, high = (end ** (1 / 7) for end in ends)
        last = self.count(step) - 1
        place = (ratio.double() ** (1 / 7) - low) / (high - low)
        index = (place * last).floor().clamp(0, last - 1)
        r, t = ((low + i / last * (high - low)) ** 7 for i in (index, index + 1))
        return t.to(ratio), r.to(ratio), (t - r).to(ratio)
