"""Pairs of noise levels t > r for the loss of consistency models.

The student's image at t is compared with its image at r, which has the same image and noise.
Levels are ratios sigma/alpha.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from fewstep.errors import InputError
from fewstep.ranges import AboveOne, CountOrZero, NonNegative, Positive
from fewstep.tables import check_fields

LEAST_GAP = 1e-6
"""Smallest gap (t − r)/t at the end of the training that settings may ask for. Numbers of float32
differ by 1.2e-7, and the predictions at t and r by their rounding then."""
LAST_GAP = 0.02
"""Largest gap (t − r)/t at the end of the training, unless the settings say otherwise: ECT's on
CIFAR-10 is 5/256."""


@dataclass(frozen=True)
class Levels(ABC):
    """Base class of rules that select the two noise levels t > r of a consistency loss."""

    noun: ClassVar[str] = "levels"

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The lowest and highest sigma/alpha, within those of the network's span."""

    @property
    def changes(self) -> bool:
        """Whether the pairs depend on the share of the training that is done."""
        return True

    @abstractmethod
    def around(
        self, ratio: Tensor, progress: float, ends: list[float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The ratios sigma/alpha (b,) of t and of r, and the gap (b,) in the loss weight 1/gap.

        `ratio` (b,) is drawn from the density, `progress` is the share of the training that is
        done, from 0 to 1, and `ends` are the ratios at the two ends of the span.
        """

    def variance_share(self, progress: float, ends: list[float], spread: float = 0.5) -> float:
        """Share of the data's variance, 0 to 1, in the images of a converged student in one step.

        For Gaussian data of standard deviation `spread` the student's best answer at t is the mean
        of its answers at r, and with theta = arctan(level/spread) each pair of levels on the way
        down from the highest leaves the share cos²(theta_t − theta_r) of the variance: it is 1 only
        for a gap of 0. This is the integral over theta in place of the product over the pairs.
        """
        low, high = (math.atan(min(end, 1e6) / spread) for end in ends)
        theta = low + (high - low) * (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
        upper, lower, _ = self.around(spread * torch.tan(theta), progress, ends)
        angle = torch.atan(upper / spread) - torch.atan(lower.clamp(min=0) / spread)
        rate = torch.log(torch.cos(angle).square()) / angle.clamp(min=1e-9)
        return math.exp((high - low) * float(rate.mean()))


@dataclass(frozen=True)
class EctLevels(Levels):
    """ECT's rule: r = t·(1 − q^−(stage+1)·(1 + k·sigmoid(−b·t))), at least 0.

    The stages 0, 1, … have equal shares of the training. Geng et al. 2024, arXiv:2406.14548.
    """

    clock: Literal["ratio", "flow"] = "ratio"
    """Unit of t and r: sigma/alpha, or Flow's time sigma/(alpha + sigma)."""
    q: AboveOne = 2.0
    """Factor by which the gap shrinks at each stage; above 1."""
    stages: CountOrZero = 0
    """Number of stages; 0 means as many as narrow the gap to 2 % of t: 6 for `q = 2`, and 1 for
    `q = 256` with `k = 8`, as published for CIFAR-10."""
    k: NonNegative = 0.0
    """Strength of the factor 1 + k·sigmoid(−b·t), which widens the gap at small levels; published:
    8. Trainings of a few hundred steps are better with 0 (docs/log.md)."""
    b: NonNegative = 1.0
    """Rate at which that factor decays with the level t."""

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, math.inf

    def __post_init__(self) -> None:
        check_fields(self, "method.levels")
        if self.stages * math.log(self.q) > -math.log(LEAST_GAP):
            raise InputError(
                f"method.levels has q = {self.q} and stages = {self.stages}, with which t and r "
                "would be equal in float32; q^stages must be at most 1e6"
            )

    @property
    def count(self) -> int:
        """The number of stages."""
        # the largest gap, at t = 0, is q^-stages·(1 + k/2)
        return self.stages or math.ceil(math.log((1 + self.k / 2) / LAST_GAP, self.q))

    @property
    def changes(self) -> bool:
        return self.count > 1

    def stage(self, progress: float) -> int:
        """The stage, from 0, at this share of the training."""
        return min(int(progress * self.count), self.count - 1)

    def around(
        self, ratio: Tensor, progress: float, ends: list[float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        flow = self.clock == "flow"
        t = 1 / (1 + 1 / ratio) if flow else ratio
        widening = 1 + self.k * torch.sigmoid(-self.b * t)
        r = (t * (1 - self.q ** -(self.stage(progress) + 1) * widening)).clamp(min=0)
        return ratio, r / (1 - r) if flow else r, t - r


@dataclass(frozen=True)
class DiscreteLevels(Levels):
    """N levels, evenly spaced in ratio^(1/7); a pair is the two levels next to a random level.

    With s0 = `first`, s1 = `last` and p from 0 to 1 the share of the training that is done, N is

        double (iCT):  min(s0·2^⌊p·(log2⌊s1/s0⌋ + 1)⌋, s1) + 1
        root (CT):     ⌈√(p·((s1+1)² − s0²) + s0²) − 1⌉ + 1
    """

    growth: Literal["double", "root", "fixed"] = "double"
    """Rule by which the number of levels N grows over the training; `fixed`, as in CD, keeps N =
    `first`."""
    first: Annotated[int, Ge(2), Le(2**20)] = 10
    """s0, the initial number of levels N; with `double`, N starts at s0 + 1."""
    last: Annotated[int, Ge(1), Le(2**20)] = 1280
    """s1, the final number of levels N minus 1."""
    ratios: tuple[Positive, Positive] = (0.002, 80.0)
    """The lowest and highest sigma/alpha, within those of the network's span."""

    @property
    def bounds(self) -> tuple[float, float]:
        return self.ratios

    def __post_init__(self) -> None:
        check_fields(self, "method.levels")
        low, high = self.ratios
        if low >= high or (self.last < self.first and self.growth != "fixed"):
            raise InputError(
                f"method.levels has first = {self.first}, last = {self.last} and ratios = "
                f"{list(self.ratios)}; it needs first <= last and ratios[0] < ratios[1]"
            )

    @property
    def changes(self) -> bool:
        return self.growth != "fixed"

    def count(self, progress: float) -> int:
        """The number of levels N at this share of the training."""
        s0, s1 = self.first, self.last
        if self.growth == "fixed":
            return s0
        if self.growth == "root":
            return math.ceil(math.sqrt(progress * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1
        doublings = math.floor(progress * (math.log2(s1 // s0) + 1))
        return min(s0 * 2**doublings, s1) + 1

    def around(
        self, ratio: Tensor, progress: float, ends: list[float]
    ) -> tuple[Tensor, Tensor, Tensor]:
        low, high = (end ** (1 / 7) for end in ends)
        last = self.count(progress) - 1
        position = (ratio.double() ** (1 / 7) - low) / (high - low)
        index = (position * last).floor().clamp(0, last - 1)
        r, t = ((low + i / last * (high - low)) ** 7 for i in (index, index + 1))
        return t.to(ratio), r.to(ratio), (t - r).to(ratio)
