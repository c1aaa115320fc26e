"""A student of exactly k steps, trained at its k times on the straight lines of recorded pairs.

    x_t = (1 − t)·x0 + t·noise,   t in {1, (k−1)/k, …, 1/k}
    loss = d(velocity(x_t, t), (x_t − x0)/t)

It is sampled with Euler steps at those times: x_s = x_t + (s − t)·velocity, which goes the fraction
(t − s)/t of the way to the predicted image. With k = 1 this is the method `regress`.
Liu, Gong and Liu 2022, arXiv:2209.03003, section 2.2 (distillation).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import Distance, ImageDistance, SquaredError
from fewstep.methods.base import Loss, Method, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.plugins import name_of
from fewstep.process import Flow, broadcast_to
from fewstep.ranges import SamplingSteps
from fewstep.times import FixedGrid, UniformGrid


@dataclass(frozen=True)
class KstepConfig:
    """Settings of `Kstep`."""

    k: SamplingSteps = 4
    """Number of steps of the student, 1 or more."""
    on: Literal["velocity", "x0"] = "velocity"
    """Prediction whose error is the loss. The x0 error is t times the velocity error."""
    loss: Distance = field(default_factory=SquaredError)
    """Distance between prediction and target: `mse`, `l1` or `pseudo-huber`; for x0 also `lpips` or
    `features`."""


class Kstep(Method[KstepConfig]):
    """Train at the k sampling times, on the straight lines between recorded noise and image."""

    reads = frozenset({"pairs"})
    starts_from_noise = True
    needs_teacher = False

    def __init__(self, config: KstepConfig, task: Task) -> None:
        if config.on == "velocity" and isinstance(config.loss, ImageDistance):
            raise InputError(
                f'method.loss "{name_of("distance", type(config.loss))}" compares images, but '
                'method.on = "velocity" compares velocities: set method.on = "x0"'
            )
        super().__init__(config, replace(task, student=task.student.under(Flow())))
        self.times = UniformGrid().points(config.k, self.student)

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        pairs = batch.pairs
        index = (batch.rand() * self.config.k).long()
        t = self.times.to(index.device)[index].float()
        start = self.student.process.start(pairs.noise, t)
        x_t = self.student.process.add_noise(pairs.x0, pairs.noise, t)
        # at the first time sampling starts from scaled noise without an image, also below t = 1
        x_t = torch.where(broadcast_to(index, x_t) == 0, start, x_t)
        prediction = self.student(x_t, t, cond=pairs.cond)
        if self.config.on == "x0":
            return Loss(self.config.loss(prediction.x0, pairs.x0).mean())
        velocity = (x_t - pairs.x0) / broadcast_to(t, x_t)
        return Loss(self.config.loss(prediction.velocity, velocity).mean())

    def generator(self) -> Generator:
        grid = FixedGrid((tuple(self.times.tolist()),))
        return Generator(self.student, self.spec, grid=grid)
