"""Simple and fast distillation: train each step of the student's trajectory in turn.

Student and teacher start from the same noise. The student's trajectory y has K steps, and the
teacher's trajectory x has `between` more points inside each of them. Each step of the student, from
time t to s, is one optimiser step:

    loss = d(student(y_t, t → s), x_s),   y_s = sg student(y_t, t → s)

y_s is computed before the update, as in the authors' code, which saves a network call. The network
has the time s as an input, so it can learn several step counts at once. The method reads no data.
Zhou et al. 2024, arXiv:2409.19681.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoiser import SPAN_TOLERANCE
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import AbsoluteError, Distance, PointDistance
from fewstep.methods.base import Loss, Method, Task, Turn, require_teacher
from fewstep.methods.batch import Batch
from fewstep.methods.checks import check_spans, grid_times
from fewstep.noise import RowNoise
from fewstep.ranges import NONEMPTY, CountOrZero, SamplingSteps
from fewstep.sampler_choices import convert_step
from fewstep.sampling import Multistep, StepContext, Transfer, path
from fewstep.times import FixedGrid, Grid, UniformGrid


@dataclass(frozen=True)
class SfdConfig:
    """Settings of `Sfd`."""

    counts: Annotated[tuple[SamplingSteps, ...], NONEMPTY] = (1, 2, 4)
    """Step counts K of the student. Each training step trains one of them, in turn."""
    between: CountOrZero = 3
    """Number of points of the teacher's trajectory between two of the student's, 0 or more."""
    solver: Literal["transfer", "heun", "multistep"] = "multistep"
    """Sampler of the teacher: `transfer` (Euler, or DDIM), `heun` (two network calls per step) or
    `multistep`."""
    order: Literal[2, 3] = 2
    """Order of the solver `multistep`; published: 3."""
    grid: Grid = field(default_factory=UniformGrid)
    """Times of the teacher's trajectory; every (between + 1)-th is also a time of the student."""
    loss: PointDistance = field(default_factory=AbsoluteError)
    """Distance between the student's state and the teacher's: `l1`, `mse` or `pseudo-huber`."""
    last: Distance | None = None
    """A second distance, added to the loss of the last step, where the state is an image.
    Published for one-step students: `lpips`."""


class Sfd(Method[SfdConfig]):
    """Train a flow map to follow the teacher's trajectory in few steps."""

    reads = frozenset()
    draws_conditions = True

    def __init__(self, config: SfdConfig, task: Task) -> None:
        if config.order != 2 and config.solver != "multistep":
            raise InputError(
                f'method.order is {config.order}, which only method.solver = "multistep" has; '
                f'method.solver is "{config.solver}"'
            )
        teacher = task.teacher
        if teacher and teacher.denoiser.is_flow_map and config.solver != "transfer":
            raise InputError(
                f'the teacher is a flow map, with which method.solver = "{config.solver}" does not '
                'work: set method.solver = "transfer"'
            )
        super().__init__(config, replace(task, student=task.student.as_flow_map()))
        teacher = require_teacher(task)
        check_spans(self.student, teacher.denoiser.under(self.student.process))
        self.solver = convert_step(teacher.step, config.solver)
        if isinstance(self.solver, Multistep):
            self.solver = replace(self.solver, order=config.order)
        self.times = {
            count: self.teacher_times(count)[:: config.between + 1].tolist()
            for count in config.counts
        }

    def teacher_times(self, count: int) -> Tensor:
        """Times of the teacher for a student of `count` steps.

        A Karras grid includes the data end of the span. That time is left out, because the last
        step already goes to the image.
        """
        steps = count * (self.config.between + 1)
        times, end = grid_times(self.config.grid, steps, self.student), self.student.span[0]
        if float(times[-1]) < end + SPAN_TOLERANCE:
            return grid_times(self.config.grid, steps + 1, self.student)[:-1]
        return times

    def turns(self, step: int) -> Iterator[Turn]:
        count = self.config.counts[step % len(self.config.counts)]
        for interval in range(count):
            yield Turn("student", partial(self.student_loss, count=count, interval=interval))

    def student_loss(self, batch: Batch, *, count: int, interval: int) -> Loss:
        if interval == 0:
            self.start_trajectories(batch, count)
        cond = Condition.from_tensors(batch.carry)
        t, s = [*self.times[count], None][interval : interval + 2]
        assert t is not None
        # the same step as the sampler takes at inference
        context = StepContext(self.student, cond, RowNoise(()))
        state, _ = Transfer()(context, batch.carry["state"], t, s)
        target = batch.carry["points"][:, interval]
        loss = self.config.loss(state, target)
        if s is None and self.config.last:
            loss = loss + self.config.last(state, target)
        batch.carry["state"] = state.detach()
        return Loss(loss.mean(), {f"step-{interval + 1}-of-{count}": loss.detach().mean()})

    @torch.no_grad()
    def start_trajectories(self, batch: Batch, count: int) -> None:
        """Sample the teacher; put noise, conditions and the teacher's points in `batch.carry`."""
        assert self.teacher
        noise, cond = batch.noise(), batch.cond()
        teacher = self.teacher.denoiser.under(self.student.process)
        states = list(path(teacher, noise, self.teacher_times(count), step=self.solver, cond=cond))
        batch.carry["state"], *points = states[:: self.config.between + 1]
        batch.carry["points"] = torch.stack(points, dim=1)
        batch.carry |= cond.tensors() if cond is not None else {}

    def generator(self) -> Generator:
        rows = tuple(tuple(times) for times in self.times.values())
        return Generator(self.student, self.spec, grid=FixedGrid(rows))
