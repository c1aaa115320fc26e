"""Simple and fast distillation: walk beside the teacher, and learn each step from where you stand.

From the same noise the teacher walks with `between` more points in each of the student's K
intervals. Interval by interval, one optimiser step each, with y the student's own state:

    loss = d(student(y_t, t → s), x_s_teacher),   y_s = sg student(y_t, t → s)

The next state is that of before the update, as in the authors' own training: it costs no further
pass. Told its destination, one network serves several step counts. No images and no pairs are
read.  Zhou et al. 2024, arXiv:2409.19681.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoiser import SPAN_TOLERANCE
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import AbsoluteError, Distance, PointDistance
from fewstep.methods.base import Batch, Loss, Method, Task, Turn, check_spans, require_teacher
from fewstep.sampling import RowNoise, StepContext, Transfer, convert_step, path
from fewstep.times import FixedGrid, Grid, UniformGrid


@dataclass(frozen=True)
class SfdConfig:
    counts: tuple[int, ...] = (1, 2, 4)
    """Step counts of the student, trained in turn: one of them a step of training."""
    between: int = 3
    """Points of the teacher between two of the student's."""
    solver: Literal["transfer", "heun", "multistep"] = "multistep"
    """The teacher's: `transfer` (Euler), `heun` at twice the cost, or `multistep`."""
    grid: Grid = field(default_factory=UniformGrid)
    """The teacher's times; every (between + 1)-th is the student's."""
    loss: PointDistance = field(default_factory=AbsoluteError)
    """Distance between the student's state and the teacher's: `l1`, `mse` or `pseudo-huber`."""
    last: Distance | None = None
    """Added at the last step, where the state is an image: `lpips`, published for one step."""


class Sfd(Method[SfdConfig]):
    """Follow a teacher's trajectory in a few strides."""

    reads = frozenset()

    def __init__(self, config: SfdConfig, task: Task) -> None:
        if not config.counts or min(config.counts) < 1 or config.between < 0:
            raise InputError("method.counts must be 1 or more, and method.between 0 or more")
        teacher = task.teacher
        if teacher and teacher.denoiser.is_flow_map and config.solver != "transfer":
            raise InputError(
                "the teacher is told its destination and takes plain steps alone: "
                'give method.solver="transfer"'
            )
        super().__init__(config, replace(task, student=task.student.as_flow_map()))
        check_spans(self.student, require_teacher(task).denoiser.under(self.student.process))
        self.times = {
            count: self.fine(count)[:: config.between + 1].tolist() for count in config.counts
        }

    def fine(self, count: int) -> Tensor:
        """The teacher's times where the student takes `count` steps.

        The last step ends at the image. A grid that asks at the span's clean end too, as Karras's
        does, is cut before it: a step from there would have nothing left to do.
        """
        steps = count * (self.config.between + 1)
        times, end = self.config.grid(steps, self.student), self.student.span[0]
        if float(times[-1]) < end + SPAN_TOLERANCE:
            return self.config.grid(steps + 1, self.student)[:-1]
        return times

    def turns(self, step: int) -> Iterator[Turn]:
        count = self.config.counts[step % len(self.config.counts)]
        for interval in range(count):
            yield Turn("student", partial(self.student_loss, count=count, interval=interval))

    def student_loss(self, batch: Batch, *, count: int, interval: int) -> Loss:
        if interval == 0:
            self.start(batch, count)
        label = batch.carry.get("label")
        cond = None if label is None else Condition(label)
        t, s = [*self.times[count], None][interval : interval + 2]
        assert t is not None
        # the step that it will be sampled with
        context = StepContext(self.student, cond, RowNoise(()))
        state, _ = Transfer()(context, batch.carry["state"], t, s)
        wanted = batch.carry["points"][:, interval]
        loss = self.config.loss(state, wanted)
        if s is None and self.config.last:
            loss = loss + self.config.last(state, wanted)
        batch.carry["state"] = state.detach()
        return Loss(loss.mean(), {f"step-{interval + 1}-of-{count}": loss.detach().mean()})

    @torch.no_grad()
    def start(self, batch: Batch, count: int) -> None:
        """Carry what all turns of this step share: noise, classes, and the teacher's points."""
        assert self.teacher
        noise, cond = batch.noise(), batch.cond()
        teacher = self.teacher.denoiser.under(self.student.process)
        step = convert_step(self.teacher.step, self.config.solver)
        states = list(path(teacher, noise, self.fine(count), step=step, cond=cond))
        batch.carry["state"], *points = states[:: self.config.between + 1]
        batch.carry["points"] = torch.stack(points, dim=1)
        if cond is not None:
            batch.carry["label"] = cond.label

    def generator(self) -> Generator:
        rows = tuple(tuple(times) for times in self.times.values())
        return Generator(self.student, self.spec, grid=FixedGrid(rows))
