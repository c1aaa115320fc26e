"""Consistency tuning: one step from anywhere on a path, learnt from neighbouring noise levels.

With the same noise at two levels r < t of the same image, and D the student's x0:

    loss = d(D(x_t, t), sg D(x_r, r))/(t − r),   r = t·(1 − q^−(stage+1)·(1 + k·sigmoid(−b·t)))

Where r falls below the student's span the target is the image. Levels t, r are sigma/alpha, as
published, or Flow's time.  Geng et al. 2024, arXiv:2406.14548 (ECT).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, Subject
from fewstep.losses import DistanceConfig, PseudoHuber
from fewstep.methods.base import Batch, Loss, Method, Turn
from fewstep.parametrization import Clean, Eps
from fewstep.process import shaped
from fewstep.sampling import renoise
from fewstep.times import DensityConfig, GridConfig, LogNormal, UniformGrid


@dataclass(frozen=True)
class ConsistencyConfig:
    density: DensityConfig = field(default_factory=lambda: LogNormal(mean=-1.1, std=2.0))
    """Where the larger level lies: `lognormal` with `mean` and `std` of ln(ratio), or `uniform`."""
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
    loss: DistanceConfig = field(default_factory=lambda: PseudoHuber(c=0.0))
    """Distance between the two predictions: `mse` or `pseudo-huber` (c = 0: the plain norm)."""
    grid: GridConfig = field(default_factory=UniformGrid)
    """The times at which the student is sampled, renoising in between."""


class Consistency(Method):
    """Make the student's answer the same along each path from noise to image."""

    Config = ConsistencyConfig
    reads = frozenset({"images"})
    needs_teacher = False
    config: ConsistencyConfig

    def __init__(
        self, config: Any, student: Denoiser, subject: Subject, *, teacher: Generator | None = None
    ) -> None:
        super().__init__(config, student, subject, teacher=teacher)
        if isinstance(student.parametrization, Eps | Clean):
            raise InputError(
                "consistency needs a network that returns x_t itself where there is no noise, and "
                "does not amplify its error where there is much: use velocity, v or edm, not "
                f"{student.parametrization.name}"
            )
        if config.q <= 1 or config.double_every < 0:
            raise InputError("method.q must be above 1, and method.double_every 0 or more")

    def turns(self, step: int) -> Iterator[Turn]:
        stage = step // self.config.double_every if self.config.double_every else 0
        yield Turn("student", lambda batch: self.student_loss(batch, stage))

    def student_loss(self, batch: Batch, stage: int) -> Loss:
        student, process = self.student, self.student.process
        x0, cond = batch.images.x0, batch.images.cond
        t = self.config.density.times(batch.rand(), student)
        eps = batch.randn_like(x0)
        level = self.level(process.ratio(t))
        lower = self.neighbour(level, stage)
        r = process.time(self.ratio(lower))
        with batch.same_dropout(), torch.no_grad():
            nearer = student(process.noised(x0, eps, r.clamp(min=student.span[0])), r, cond=cond).x0
            target = torch.where(shaped(r, x0) <= student.span[0], x0, nearer)
        with batch.same_dropout():
            said = student(process.noised(x0, eps, t), t, cond=cond).x0
        return Loss((self.config.loss(said, target) / (level - lower)).mean())

    def level(self, ratio: Tensor) -> Tensor:
        """A sigma/alpha in the clock's units."""
        return ratio if self.config.clock == "ratio" else 1 / (1 + 1 / ratio)

    def ratio(self, level: Tensor) -> Tensor:
        """The clock's units back as sigma/alpha."""
        return level if self.config.clock == "ratio" else level / (1 - level)

    def neighbour(self, level: Tensor, stage: int) -> Tensor:
        """The lower of the two levels: never below 0."""
        c = self.config
        share = c.q ** -(stage + 1) * (1 + c.k * torch.sigmoid(-c.b * level))
        return (level * (1 - share)).clamp(min=0)

    def generator(self) -> Generator:
        return Generator(self.student, self.subject, grid=self.config.grid, step=renoise)
