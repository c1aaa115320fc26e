"""Progressive distillation: a student of N steps learns two steps of its guide in one; N halves.

From t the guide's two DDIM steps go by m to s, the next time of the student's N. The image that
takes x_t there in one step is the mean of the guide's two, by how much signal each step gains:

    target = (x_s − (sigma_s/sigma_t)·x_t)/(alpha_s − (sigma_s/sigma_t)·alpha_t)
           = share·x0_guide(x_t) + (1 − share)·x0_guide(x_m)
    share = (signal_m − signal_t)/(signal_s − signal_t),   signal = alpha/sigma, at the image ∞
    loss = w(t)·(x0_student(x_t) − target)²

The guide of the first phase is the teacher, of a later one the student at the end of the phase
before. Salimans and Ho 2022, arXiv:2202.00512; from a guided teacher the first phase takes guidance
into the student: Meng et al. 2023, arXiv:2210.03142.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fewstep import ema
from fewstep.denoiser import Denoiser, Prediction, check_times
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import Batch, Loss, Method, Task, Turn
from fewstep.process import broadcast_to
from fewstep.times import FixedGrid, Grid, UniformGrid


@dataclass(frozen=True)
class ProgressiveConfig:
    first: int = 16
    """Steps of the student in the first phase; the teacher takes twice as many."""
    last: int = 1
    """Steps of the student in the last phase: `first` halved any number of times."""
    phases: int | tuple[int, ...] = 50_000
    """Training steps of a phase: one number for all, or one each. fit.steps is their sum."""
    weight: Literal["snr", "output"] = "snr"
    """Of the x0 error: max(SNR, 1), or what turns it into that of the raw output, SNR + 1 for v."""
    bound: float = 1e4
    """Largest weight, for grids that reach almost to the image."""
    grid: Grid = field(default_factory=UniformGrid)
    """The teacher's 2·first times; the student's are every second of them, every fourth, ..."""


class Phase(NamedTuple):
    """A stretch of training with one guide and one count of steps."""

    steps: int
    first: int
    stop: int


class Progressive(Method[ProgressiveConfig]):
    """Halve the steps again and again; what it once did in more steps it forgets."""

    reads = frozenset({"images"})

    def __init__(self, config: ProgressiveConfig, task: Task) -> None:
        student, teacher = task.student, task.teacher
        if teacher:
            teacher = Generator(teacher.denoiser.under(student.process), task.spec)
        super().__init__(config, replace(task, teacher=teacher))
        self.phases = _phases(config)
        self.guide = deepcopy(student)
        self.times = config.grid(2 * config.first, student)
        check_times(self.times, self.guide_of(self.phases[0]).span)
        signals = 1 / student.process.ratio(self.times)
        self.signals = torch.cat([signals, torch.full_like(signals[:1], math.inf)])

    @property
    def fixed_steps(self) -> int:
        return self.phases[-1].stop

    def turns(self, step: int) -> Iterator[Turn]:
        phase = next((p for p in self.phases if step < p.stop), self.phases[-1])
        span = (phase.first, phase.stop)
        yield Turn("student", lambda batch: self.student_loss(batch, phase), phase=span)
        if step + 1 == phase.stop and phase != self.phases[-1]:
            ema.follow(self.guide, self.student, decay=0.0)

    def guide_of(self, phase: Phase) -> Denoiser:
        """Who is learnt from: the teacher, later the student as it was."""
        assert self.teacher
        return self.teacher.denoiser if phase == self.phases[0] else self.guide

    def student_loss(self, batch: Batch, phase: Phase) -> Loss:
        x0, cond = batch.images.x0, batch.images.cond
        stride = len(self.times) // phase.steps
        start = (batch.rand() * phase.steps).long() * stride
        t, middle = (self.times.to(x0)[start + i] for i in (0, stride // 2))
        signals = self.signals.to(x0)
        at_t, at_m, at_s = (signals[start + i] for i in (0, stride // 2, stride))
        x_t = self.student.process.add_noise(x0, batch.randn_like(x0), t)
        with torch.no_grad():
            guide = self.guide_of(phase)
            early = guide(x_t, t, cond=cond)
            alpha, sigma = guide.process.at(middle, like=x_t)
            late = guide(alpha * early.x0 + sigma * early.eps, middle, cond=cond)
            share = broadcast_to((at_m - at_t) / (at_s - at_t), x_t)
            target = share * early.x0 + (1 - share) * late.x0
        said = self.student(x_t, t, cond=cond)
        return Loss((self.weight(said) * squared_error(said.x0, target)).mean())

    def weight(self, said: Prediction) -> Tensor:
        """Of the x0 error, one a row."""
        if self.config.weight == "output":
            _, out = said.parametrization.skip_out(said.alpha, said.sigma)
            weight = 1 / out.square()
        else:
            weight = (said.alpha / said.sigma).square().clamp(min=1)
        return weight.clamp(max=self.config.bound).flatten()

    def generator(self) -> Generator:
        times = self.times[:: len(self.times) // self.config.last].tolist()
        return Generator(self.student, self.spec, grid=FixedGrid((tuple(times),)))


def _phases(config: ProgressiveConfig) -> list[Phase]:
    first, last, told = config.first, config.last, config.phases
    halvings = (first // max(last, 1)).bit_length() - 1
    if last < 1 or last << max(halvings, 0) != first:
        raise InputError(
            f"method.first is {first} and method.last {last}; first must be last times a power of "
            "two, such as 16 and 1"
        )
    lengths = (told,) * (halvings + 1) if isinstance(told, int) else told
    if len(lengths) != halvings + 1 or min(lengths) < 1:
        raise InputError(
            f"method.phases is {told}; from {first} steps to {last} there are {halvings + 1} "
            "phases, each of at least 1 step"
        )
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    return [Phase(first >> i, *span) for i, span in enumerate(pairwise(ends))]
