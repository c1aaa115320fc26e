"""One step from recorded pairs: the student says at once what the teacher's ODE ends at.

    loss = d(x0_student(noise), x0_teacher(noise))

Luhman and Luhman 2021, arXiv:2101.02388.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from fewstep.generator import Generator
from fewstep.losses import Distance, SquaredError
from fewstep.methods.base import Batch, Loss, Method, Turn
from fewstep.times import FixedGrid


@dataclass(frozen=True)
class RegressConfig:
    loss: Distance = field(default_factory=SquaredError)
    """Distance between the student's image and the teacher's: `mse`, `pseudo-huber`, `lpips` or
    `features`."""


class Regress(Method[RegressConfig]):
    """Fit the teacher's noise-to-image map, asked once at the span's noisy end."""

    reads = frozenset({"pairs"})
    needs_teacher = False

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        pairs = batch.pairs
        start = self.student.span[1]
        _, sigma = self.student.process.at(start, like=pairs.noise)
        said = self.student(sigma * pairs.noise, start, cond=pairs.cond)
        return Loss(self.config.loss(said.x0, pairs.x0).mean())

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=FixedGrid(((self.student.span[1],),)))
