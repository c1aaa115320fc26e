"""A student of exactly k steps, taught on the pairs' straight lines at just its k times.

    x_t = (1 − t)·x0 + t·noise,   t in {1, (k−1)/k, …, 1/k}
    loss = d(velocity(x_t, t), (x_t − x0)/t)

It is sampled by Euler's steps at those times, each from t to s on the line that it sees:
x_s = x_t + (s − t)·velocity, which moves the share (t − s)/t of the way to the predicted image. At
k = 1 this is regression.  Liu, Gong and Liu 2022, arXiv:2209.03003, section 2.2 (distillation).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import Distance, ImageDistance, SquaredError
from fewstep.methods.base import Batch, Loss, Method, Task, Turn
from fewstep.process import Flow, broadcast_to
from fewstep.times import FixedGrid, UniformGrid


@dataclass(frozen=True)
class KstepConfig:
    k: int = 4
    """Steps of the student: 1, 2, 4, 8 or any other number."""
    on: Literal["velocity", "x0"] = "velocity"
    """What the loss compares. An error of x0 at t is t times that of the velocity."""
    loss: Distance = field(default_factory=SquaredError)
    """Distance between prediction and truth: `mse` or `pseudo-huber`; of x0 also `lpips` or
    `features`."""


class Kstep(Method[KstepConfig]):
    """Learn the lines between recorded noise and image where the student will stand on them."""

    reads = frozenset({"pairs"})
    needs_teacher = False

    def __init__(self, config: KstepConfig, task: Task) -> None:
        if config.k < 1:
            raise InputError(f"method.k is {config.k}; a student takes at least 1 step")
        if config.on == "velocity" and isinstance(config.loss, ImageDistance):
            raise InputError(
                f'{type(config.loss).__name__} compares images: with it give method.on = "x0"'
            )
        super().__init__(config, replace(task, student=task.student.under(Flow())))
        self.times = UniformGrid().points(config.k, self.student)

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        pairs = batch.pairs
        which = (batch.rand() * self.config.k).long()
        t = self.times.to(which.device)[which].float()
        _, sigma = self.student.process.at(t, like=pairs.noise)
        x_t = self.student.process.add_noise(pairs.x0, pairs.noise, t)
        # sampling starts from noise alone, at an earlier first time than 1 too
        x_t = torch.where(broadcast_to(which, x_t) == 0, sigma * pairs.noise, x_t)
        said = self.student(x_t, t, cond=pairs.cond)
        if self.config.on == "x0":
            return Loss(self.config.loss(said.x0, pairs.x0).mean())
        return Loss(self.config.loss(said.velocity, (x_t - pairs.x0) / broadcast_to(t, x_t)).mean())

    def generator(self) -> Generator:
        grid = FixedGrid((tuple(self.times.tolist()),))
        return Generator(self.student, self.spec, grid=grid)
