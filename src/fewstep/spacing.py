"""Grids of networks that others trained: their tables' steps, spaced as their samplers space them.

`TableGrid` is for networks with a table of noise levels, `ShiftedGrid` for flow matching.  Lin et
al. 2023, arXiv:2305.08891, table 2, names the spacings; Esser et al. 2024, arXiv:2403.03206, the
shift.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.process import Flow
from fewstep.ranges import Positive, Probability, SamplingSteps
from fewstep.tables import check_fields
from fewstep.times import Grid

Curve = Literal["karras", "exponential", "beta"]
KARRAS_RHO = 7.0
BETA_SHAPE = 0.6


@dataclass(frozen=True)
class TableGrid(Grid):
    """Steps i of a table of noise levels, at the times i/(levels − 1) of the network's own process.

    The defaults are those of DDPM and DDIM in diffusers: 10 steps are i = 900, 800, … 0. Under
    another process the times are those of equal sigma/alpha. Times above the network's span are
    moved to its end.
    """

    levels: Annotated[int, Ge(2), Le(100_000)] = 1000
    """Number of noise levels in the table."""
    spacing: Literal["leading", "trailing", "linspace", "lcm"] = "leading"
    """`leading`: multiples of the whole part of levels/N; `trailing`: from the last level down, by
    levels/N; `linspace`: from the last level to the first; `lcm`: N of `original` levels."""
    offset: Annotated[int, Ge(0), Le(100_000)] = 0
    """Added to each step of `leading`."""
    open_end: bool = False
    """Space N + 1 steps and leave out the one at the data end, as DPM-Solver does."""
    rounded: bool = True
    """Round `linspace` to whole steps."""
    last: Annotated[int, Ge(0), Le(100_000)] | None = None
    """Index of the highest level in use; by default levels − 1."""
    original: SamplingSteps = 50
    """Steps of the solver from which an LCM was distilled, for `lcm`."""
    curve: Curve | None = None
    """Replace the steps by levels sigma/alpha on a curve: between those of the first and the last
    step, or, with `open_end`, over the network's span."""
    unit_start: bool = True
    """Start a sample from √(alpha² + sigma²)·noise, as diffusers does, in place of sigma·noise."""

    @property
    def _top(self) -> int:
        return self.levels - 1 if self.last is None else self.last

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        native = getattr(denoiser.parametrization, "native", None) or denoiser.process
        t = self.indices(steps) / (self.levels - 1)
        if self.curve or native != denoiser.process:
            ratio = native.ratio(t)
            if self.curve:
                ratio = respace(*self._ends(ratio, denoiser), steps, self.curve)
            t = denoiser.process.time(ratio)
        return _within(t, denoiser)

    def _ends(self, ratio: Tensor, denoiser: Denoiser) -> tuple[float, float]:
        """The highest and lowest sigma/alpha of a curve."""
        if self.open_end:
            low, high = denoiser.process.ratio(torch.tensor(denoiser.span, dtype=ratio.dtype))
            return float(high), float(low)
        return float(ratio[0]), float(ratio[-1])

    def indices(self, steps: int) -> Tensor:
        """The table's steps (N,) in float64, from noise to data, before a `curve` replaces them.

        Raises: InputError for more steps than the spacing has.
        """
        count, top = steps + self.open_end, self._top
        if self.spacing == "lcm":
            index = self._lcm_indices(steps)
        elif self.spacing == "trailing":
            # the sums of numpy.arange round as those of diffusers do
            index = np.arange(top + 1, 0, -(top + 1) / steps).round()[:steps] - 1
        elif self.spacing == "leading":
            index = np.arange(count)[::-1][:steps] * ((top + 1) // count) + self.offset
        else:
            index = np.linspace(0, top, count)[::-1][:steps]
            index = index.round() if self.rounded else index
        if index[0] > top or (np.diff(index) >= 0).any():
            raise InputError(
                f"{steps} steps do not fit into {self.levels} noise levels with the spacing "
                f"{self.spacing!r}: take fewer"
            )
        return torch.from_numpy(index.astype(np.float64))

    def _lcm_indices(self, steps: int) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        if steps > self.original:
            raise InputError(f"an LCM takes at most {self.original} steps, not {steps}")
        stride = self.levels // self.original
        levels = np.arange(self.original, 0, -1) * stride - 1
        return levels[np.floor(np.linspace(0, len(levels), steps, endpoint=False)).astype(np.int64)]

    def start_scale(self, t: float, denoiser: Denoiser) -> float:
        if not self.unit_start:
            return 1.0
        ratio = denoiser.process.ratio(torch.tensor(t, dtype=torch.float64))
        return float(torch.sqrt(1 + 1 / ratio.square()))


@dataclass(frozen=True)
class ShiftedGrid(Grid):
    """Equally spaced times u of `Flow`, shifted towards noise: t = shift·u/(1 + (shift − 1)·u).

    Under another process the times are those of equal sigma/alpha.
    """

    shift: Positive = 1.0
    """1 leaves the times as they are; 3 is that of Stable Diffusion 3."""
    low: Probability = 0.001
    """The last u, from 0 to below `high`."""
    high: Probability = 1.0
    """The first u, at most 1."""
    open_end: bool = False
    """Space N + 1 times and leave out the one at the data end."""
    curve: Curve | None = None
    """Space t between its first and its last value on a curve."""

    def __post_init__(self) -> None:
        check_fields(self, "shifted")
        if self.low >= self.high:
            raise InputError(
                f"a shifted grid has low = {self.low} and high = {self.high}; it needs low < high"
            )

    def points(self, steps: int, denoiser: Denoiser) -> Tensor:
        count = steps + self.open_end
        u = torch.linspace(self.high, self.low, count, dtype=torch.float64)[:steps]
        t = self.shift * u / (1 + (self.shift - 1) * u)
        if self.curve:
            t = respace(float(t[0]), float(t[-1]), steps, self.curve)
        if denoiser.process != Flow():
            t = denoiser.process.time(t / (1 - t))
        return _within(t, denoiser)


def respace(high: float, low: float, steps: int, curve: Curve) -> Tensor:
    """`steps` values (N,) from `high` to `low` on a curve.

    `karras` is even in value^(1/7) (Karras et al. 2022, arXiv:2206.00364, eq. 5), `exponential` in
    ln(value); `beta` has the quantiles of Beta(0.6, 0.6) (Lee et al. 2024, arXiv:2407.12173).

    Raises: InputError for an infinite value, or 0 on the curve `exponential`.
    """
    if math.isinf(high) or (curve == "exponential" and low == 0):
        raise InputError(
            f"the curve {curve!r} cannot run from the noise level {high:g} to {low:g}, as at these "
            "steps of this network: leave out the curve, or choose another grid"
        )
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    if curve == "karras":
        top, bottom = high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO)
        return (top + share * (bottom - top)) ** KARRAS_RHO
    if curve == "exponential":
        return high * (low / high) ** share
    from scipy.stats import beta

    quantiles = torch.from_numpy(np.asarray(beta.ppf(1 - share.numpy(), BETA_SHAPE, BETA_SHAPE)))
    return low + quantiles * (high - low)


def _within(t: Tensor, denoiser: Denoiser) -> Tensor:
    """Times that lie above the network's span moved to its end.  Raises: InputError for two."""
    t = t.clamp(max=denoiser.span[1])
    if len(t) > 1 and t[0] == t[1]:
        raise InputError(
            f"{len(t)} steps need several times above t = {denoiser.span[1]:.6g}, the noisiest at "
            "which this network can be used: take fewer"
        )
    return t
