"""Rectified flow: flow matching on the noise and images that the teacher's ODE connects.

    x_t = (1 − t)·x0 + t·noise,   loss = d(velocity(x_t, t), noise − x0)

The straight lines between real images and independent noise cross, so the flow that is trained on
them has curved paths. The lines between noise and image of a teacher's ODE cross less, so the new
flow has straighter paths and needs fewer steps. Pairs recorded with the new flow can train another
one, called 3-rectified flow.
Liu, Gong and Liu 2022, arXiv:2209.03003.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from fewstep.generator import Generator
from fewstep.losses import PointDistance, SquaredError
from fewstep.methods.base import Loss, Method, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.process import Flow
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class ReflowConfig:
    """Settings of `Reflow`."""

    density: Density = field(default_factory=Uniform)
    """Distribution of the training times: `uniform`, or `lognormal` with `mean` and `std` of
    ln(sigma/alpha)."""
    loss: PointDistance = field(default_factory=SquaredError)
    """Distance between the student's velocity and noise − x0: `mse`, `l1` or `pseudo-huber`."""
    grid: Grid = field(default_factory=UniformGrid)
    """Times at which the trained network is sampled: `uniform` or `karras`."""


class Reflow(Method[ReflowConfig]):
    """Train on the straight lines between recorded noise and image."""

    reads = frozenset({"pairs"})
    needs_teacher = False
    trains_at_all_times = True
    trains_velocity = True

    def __init__(self, config: ReflowConfig, task: Task) -> None:
        # x_t = (1 − t)·x0 + t·noise; networks trained under other processes are converted
        super().__init__(config, replace(task, student=task.student.under(Flow())))

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        pairs = batch.pairs
        t = self.config.density.times(batch.rand(), self.student)
        x_t = self.student.process.add_noise(pairs.x0, pairs.noise, t)
        prediction = self.student(x_t, t, cond=pairs.cond)
        return Loss(self.config.loss(prediction.velocity, pairs.noise - pairs.x0).mean())

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=self.config.grid)
