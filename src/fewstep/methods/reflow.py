"""Straighter paths: flow matching on the two ends of the teacher's own paths.

    x_t = (1 − t)·x0 + t·noise,   loss = d(velocity(x_t, t), noise − x0)

Real images meet noise by chance, so the lines between them cross and the flow must bend; noise and
the image that a flow makes of it do not. Pairs of the result, recorded and learnt again, give
3-rectified flow.  Liu, Gong and Liu 2022, arXiv:2209.03003.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fewstep.generator import Generator
from fewstep.losses import PointDistance, SquaredError
from fewstep.methods.base import Batch, Loss, Method, Task, Turn
from fewstep.process import Flow
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class ReflowConfig:
    density: Density = field(default_factory=Uniform)
    """Where training times lie: `uniform`, or `lognormal` with `mean` and `std` of ln(ratio)."""
    loss: PointDistance = field(default_factory=SquaredError)
    """Distance between the two velocities: `mse` or `pseudo-huber`."""
    grid: Grid = field(default_factory=UniformGrid)
    """The times at which the trained network is sampled: `uniform` or `karras`."""


class Reflow(Method[ReflowConfig]):
    """Learn the straight line between the ends of each recorded path."""

    reads = frozenset({"pairs"})
    needs_teacher = False

    def __init__(self, config: ReflowConfig, task: Task) -> None:
        # lines are straight under this clock; any network can be asked under it
        super().__init__(config, replace(task, student=task.student.under(Flow())))

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        pairs = batch.pairs
        t = self.config.density.times(batch.rand(), self.student)
        x_t = self.student.process.add_noise(pairs.x0, pairs.noise, t)
        said = self.student(x_t, t, cond=pairs.cond)
        return Loss(self.config.loss(said.velocity, pairs.noise - pairs.x0).mean())

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=self.config.grid)
