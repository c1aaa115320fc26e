"""Times: densities for training and grids for sampling.

A density maps uniform random numbers, which the batch draws, to times. A grid returns the N times
of an N-step sample in float64, in decreasing order; the last step goes from the last of these times
to the image.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from fewstep.denoiser import Denoiser, check_times
from fewstep.errors import InputError
from fewstep.ranges import Positive, Probability
from fewstep.tables import check_fields


@dataclass(frozen=True)
class Density(ABC):
    """Base class of distributions of training times."""

    noun: ClassVar[str] = "density"

    @abstractmethod
    def times(self, u: Tensor, denoiser: Denoiser) -> Tensor:
        """The quantiles of the density at `u` (b,) in [0, 1): times (b,) in the denoiser's span."""


@dataclass(frozen=True)
class Uniform(Density):
    """The uniform density of times, as in DDPM and flow matching."""

    low: Probability = 0.0
    """Start of the interval, as a fraction of the span; distribution matching uses 0.02 … 0.98."""
    high: Probability = 1.0
    """End of the interval, as a fraction of the span."""

    def __post_init__(self) -> None:
        _check_fractions(self.low, self.high)

    def times(self, u: Tensor, denoiser: Denoiser) -> Tensor:
        low, high = denoiser.span
        return low + (high - low) * (self.low + (self.high - self.low) * u)


@dataclass(frozen=True)
class Karras(Density):
    """The density in which (sigma/alpha)^(1/rho) is uniform, as on a Karras grid.

    Karras et al. 2022, arXiv:2206.00364, eq. 5; common in the distillation of EDM networks.
    """

    rho: Positive = 7.0
    """A larger value puts more times near the data end."""
    low: Probability = 0.0
    """Start of the interval, as a fraction of the Karras grid's indices, counted from the data
    end."""
    high: Probability = 1.0
    """End of the interval, as a fraction of the Karras grid's indices."""

    def __post_init__(self) -> None:
        _check_fractions(self.low, self.high)

    def times(self, u: Tensor, denoiser: Denoiser) -> Tensor:
        fraction = self.low + (self.high - self.low) * u.double()
        return karras_times(fraction, self.rho, denoiser).to(u.dtype)


@dataclass(frozen=True)
class LogNormal(Density):
    """ln(sigma/alpha) ~ N(mean, std²), truncated to the span.

    EDM uses (mean, std) = (−1.2, 1.2), ECT (−1.1, 2.0); under `Flow` it is the logit-normal density
    of time.  Karras et al. 2022, arXiv:2206.00364; Esser et al. 2024, arXiv:2403.03206.
    """

    mean: Annotated[float, Ge(-100), Le(100)] = -1.2
    """Mean of ln(sigma/alpha)."""
    std: Annotated[float, Gt(0), Le(100)] = 1.2
    """Standard deviation of ln(sigma/alpha)."""

    def __post_init__(self) -> None:
        check_fields(self, "lognormal")

    def times(self, u: Tensor, denoiser: Denoiser) -> Tensor:
        process = denoiser.process
        span = torch.tensor(denoiser.span, dtype=torch.float64)
        ends = (torch.log(process.ratio(span)) - self.mean) / self.std
        low, high = torch.special.ndtr(ends).tolist()
        normal = torch.special.ndtri(low + (high - low) * u.double())
        ratio = torch.exp(self.mean + self.std * normal)
        return process.time(ratio).clamp(*denoiser.span).to(u.dtype)


def karras_times(fraction: Tensor, rho: float, denoiser: Denoiser) -> Tensor:
    """Times at a fraction of a Karras grid, from 0 (the span's data end) to 1 (its noise end).

    Raises: InputError if sigma/alpha is infinite at the noise end.
    """
    process = denoiser.process
    span = torch.tensor(denoiser.span, dtype=torch.float64)
    low, high = (process.ratio(span) ** (1 / rho)).tolist()
    if not math.isfinite(high):
        raise InputError(
            "a Karras grid needs a network whose largest noise level sigma/alpha is finite, and "
            "this network starts from pure noise (alpha = 0): use uniform times"
        )
    return process.time((low + fraction * (high - low)) ** rho).clamp(*denoiser.span)


def _check_fractions(low: float, high: float) -> None:
    if not 0 <= low < high <= 1:
        raise InputError(
            f"a density has low = {low} and high = {high}; it needs 0 <= low < high <= 1"
        )


@dataclass(frozen=True)
class Grid(ABC):
    """Base class of grids, which return the times of the sampling steps."""

    noun: ClassVar[str] = "grid"

    @property
    def counts(self) -> tuple[int, ...]:
        """Step counts that the grid supports; an empty tuple means any count."""
        return ()

    @abstractmethod
    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        """`steps` decreasing times in float64."""

    def __call__(self, steps: int, denoiser: Denoiser) -> Tensor:
        """`steps` decreasing times in float64 on the CPU.

        Raises: InputError for fewer than 1 step, or times outside the denoiser's span.
        """
        if steps < 1:
            raise InputError(f"a sample needs at least 1 step, not {steps} steps")
        times = self.points(steps, denoiser)
        check_times(times, denoiser.span)
        return times

    def start_scale(self, t: float, denoiser: Denoiser) -> float:
        """Factor of the state sigma·noise at which a sample starts at the first time `t`."""
        return 1.0


@dataclass(frozen=True)
class UniformGrid(Grid):
    """Equal steps in t: t_i = high − (high − low)·i/N, i = 0 … N−1."""

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        low, high = denoiser.span
        return high - (high - low) * torch.arange(steps, dtype=torch.float64) / steps


@dataclass(frozen=True)
class KarrasGrid(Grid):
    """Equal steps in ratio^(1/rho), from the noise end of the span to its data end.

    The data end is the last time, unless it has no noise: a step from there would change nothing,
    so the last step goes to it. Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """

    rho: Positive = 7.0
    """A larger value puts more steps near the data end."""

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        end = denoiser.process.ratio(torch.tensor(denoiser.span[0], dtype=torch.float64))
        intervals = max(steps - 1, 1) if end > 0 else steps
        fraction = torch.arange(steps, dtype=torch.float64) / intervals
        return karras_times(1 - fraction, self.rho, denoiser)


@dataclass(frozen=True)
class LogSNRGrid(Grid):
    """Equal steps in the log-SNR ln(alpha²/sigma²), between bounds of sigma/alpha within the span.

    Lu et al. 2022, arXiv:2206.00927, section 3.3.
    """

    low: Positive = 0.002
    """sigma/alpha of the last time, or that of the span's data end, if it is higher."""
    high: Positive = 80.0
    """sigma/alpha of the first time, or that of the span's noise end, if it is lower."""

    def __post_init__(self) -> None:
        check_fields(self, "log-snr")
        if self.low >= self.high:
            raise InputError(
                f"a log-snr grid has low = {self.low:g} and high = {self.high:g}; it needs low < "
                "high"
            )

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        span = torch.tensor(denoiser.span, dtype=torch.float64)
        low, high = denoiser.process.ratio(span).tolist()
        low, high = max(low, self.low), min(high, self.high)
        if low >= high:
            raise InputError(
                f"a log-snr grid has low = {self.low:g} and high = {self.high:g}, and no time of "
                "this network has such a sigma/alpha: choose other bounds"
            )
        share = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        return denoiser.process.time(high * (low / high) ** share).clamp(*denoiser.span)


@dataclass(frozen=True)
class FixedGrid(Grid):
    """A fixed list of times for each supported step count: those that a student was trained at."""

    times: tuple[tuple[Probability, ...], ...]
    """One decreasing list of times for each step count."""

    def __post_init__(self) -> None:
        lengths = {len(row) for row in self.times}
        if not lengths or 0 in lengths or len(lengths) < len(self.times):
            raise InputError(
                f"a fixed grid has {len(self.times)} lists of times, of {len(lengths)} lengths: "
                "give one list for each number of steps, of at least one time"
            )
        for row in self.times:
            # "not all" refuses NaN too
            if not all(0 <= t <= 1 for t in row) or not all(a > b for a, b in pairwise(row)):
                raise InputError(
                    f"a fixed grid has the times {list(row[:8])}; times must decrease from at most "
                    "1 to at least 0"
                )

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(sorted(len(row) for row in self.times))

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        for row in self.times:
            if len(row) == steps:
                return torch.tensor(row, dtype=torch.float64)
        counts = ", ".join(map(str, self.counts))
        raise InputError(f"this grid has no times for {steps} steps; choose from {counts}")
