"""Regression on recorded pairs: the student predicts the end of the teacher's ODE in one step.

    loss = d(x0_student(noise), x0_teacher(noise))

Luhman and Luhman 2021, arXiv:2101.02388.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.generator import Generator
from fewstep.losses import Distance, SquaredError
from fewstep.methods.base import Loss, Method, Turn
from fewstep.methods.batch import Batch
from fewstep.ranges import Positive
from fewstep.times import FixedGrid


@dataclass(frozen=True)
class RegressConfig:
    """Settings of `Regress`."""

    loss: Distance = field(default_factory=SquaredError)
    """Distance between the student's image and the teacher's: `mse`, `pseudo-huber`, `lpips` or
    `features`."""
    clip: Positive | None = None
    """Where the teacher's image is beyond ±clip, any value beyond it is right: all are shown alike.
    1 for images, whose white and black areas then have no faint noise."""


class Regress(Method[RegressConfig]):
    """Train one call at the noisiest time to reproduce the teacher's map from noise to image."""

    reads = frozenset({"pairs"})
    starts_from_noise = True
    needs_teacher = False

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        pairs = batch.pairs
        start = self.student.span[1]
        x_t = self.student.process.start(pairs.noise, start)
        x0 = self.student(x_t, start, cond=pairs.cond).x0
        target = pairs.x0 if self.config.clip is None else _nearest(x0, pairs.x0, self.config.clip)
        return Loss(self.config.loss(x0, target).mean())

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=FixedGrid(((self.student.span[1],),)))


def _nearest(x0: Tensor, target: Tensor, clip: float) -> Tensor:
    """Of all images that look like `target`, the one that is nearest to `x0`."""
    x0, visible = x0.detach(), target.clamp(-clip, clip)
    return torch.where(x0.clamp(-clip, clip) == visible, x0, visible)
