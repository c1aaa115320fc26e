"""Progressive distillation: in each phase, the student learns two DDIM steps of a guide as one.

The guide is the network that computes the targets: in the first phase the teacher, in each later
phase the student at the end of the phase before. Each phase halves the student's number of steps N.
From t, two DDIM steps of the guide lead to m and then to s, the next of the student's N times. The
x0 prediction that takes x_t to the same x_s in one step is a weighted mean of the guide's two:

    target = (x_s − (sigma_s/sigma_t)·x_t)/(alpha_s − (sigma_s/sigma_t)·alpha_t)
           = early_weight·x0_guide(x_t) + (1 − early_weight)·x0_guide(x_m)
    early_weight = (signal_m − signal_t)/(signal_s − signal_t)
    loss = w(t)·(x0_student(x_t) − target)²

with signal = alpha/sigma, which is infinite at the image. Salimans and Ho 2022, arXiv:2202.00512.
If the teacher has classifier-free guidance, the student of the first phase learns it: Meng et al.
2023, arXiv:2210.03142.
"""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fewstep import ema
from fewstep.denoiser import Denoiser, Prediction, check_times
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import Loss, Method, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.methods.checks import grid_times
from fewstep.methods.schedule import step_ranges
from fewstep.process import broadcast_to
from fewstep.ranges import Positive, SamplingSteps
from fewstep.times import FixedGrid, Grid, UniformGrid


@dataclass(frozen=True)
class ProgressiveConfig:
    """Settings of `Progressive`."""

    first: SamplingSteps = 16
    """Sampling steps of the student in the first phase; the teacher takes twice as many."""
    last: SamplingSteps = 1
    """Sampling steps of the student in the last phase: `first` divided by a power of two."""
    phases: tuple[Positive, ...] = ()
    """Relative lengths of the phases, which divide fit.steps; empty means equal lengths."""
    weight: Literal["snr", "output"] = "snr"
    """Weight of the squared x0 error: `snr` is max(SNR, 1); `output` makes it the squared error of
    the raw output, which for a v network is a weight of SNR + 1."""
    bound: Positive = 1e4
    """Largest weight, which grids with almost no noise at their last times would exceed."""
    grid: Grid = field(default_factory=UniformGrid)
    """The 2·first times of the teacher. The student takes every second of them in the first phase,
    every fourth in the second, and so on."""


class Phase(NamedTuple):
    """A range [first, stop) of training steps, in which the student has `steps` sampling steps."""

    steps: int
    first: int
    stop: int


class Progressive(Method[ProgressiveConfig]):
    """Halve the number of sampling steps phase by phase; the result samples in `last` steps."""

    reads = frozenset({"images"})

    def __init__(self, config: ProgressiveConfig, task: Task) -> None:
        student, teacher = task.student, task.teacher
        if teacher:
            teacher = Generator(teacher.denoiser.under(student.process), task.spec)
        super().__init__(config, replace(task, teacher=teacher))
        self.phases = _phases(config, task.steps)
        self.guide = deepcopy(student)
        self.times = grid_times(config.grid, 2 * config.first, student)
        check_times(self.times, self.guide_of(self.phases[0]).span)
        signals = 1 / student.process.ratio(self.times)
        self.signals = torch.cat([signals, torch.full_like(signals[:1], math.inf)])

    @classmethod
    def length_settings(cls, config: ProgressiveConfig) -> list[str]:
        return ["method.phases"]

    def turns(self, step: int) -> Iterator[Turn]:
        phase = next((p for p in self.phases if step < p.stop), self.phases[-1])
        span = (phase.first, phase.stop)
        yield Turn("student", lambda batch: self.student_loss(batch, phase), phase=span)
        if step + 1 == phase.stop and phase != self.phases[-1]:
            ema.follow(self.guide, self.student, decay=0.0)

    def guide_of(self, phase: Phase) -> Denoiser:
        """The network that computes a phase's targets: the teacher, later the earlier student."""
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
            early_weight = broadcast_to((at_m - at_t) / (at_s - at_t), x_t)
            target = early_weight * early.x0 + (1 - early_weight) * late.x0
        prediction = self.student(x_t, t, cond=cond)
        return Loss((self.weight(prediction) * squared_error(prediction.x0, target)).mean())

    def weight(self, prediction: Prediction) -> Tensor:
        """Weight (b,) of the squared x0 error."""
        if self.config.weight == "output":
            _, output_factor = prediction.coefficients.x0
            weight = 1 / output_factor.square()
        else:
            weight = (prediction.alpha / prediction.sigma).square().clamp(min=1)
        return weight.clamp(max=self.config.bound).flatten()

    def generator(self) -> Generator:
        times = self.times[:: len(self.times) // self.config.last].tolist()
        return Generator(self.student, self.spec, grid=FixedGrid((tuple(times),)))


def _phases(config: ProgressiveConfig, steps: int) -> list[Phase]:
    first, last, phases = config.first, config.last, config.phases
    halvings = (first // last).bit_length() - 1
    if last << max(halvings, 0) != first:
        raise InputError(
            f"method.first is {first} and method.last {last}; method.first must be method.last "
            "times a power of two, such as 16 and 1"
        )
    lengths = phases or (1,) * (halvings + 1)
    if len(lengths) != halvings + 1:
        raise InputError(
            f"method.phases is {list(phases)}; from {first} sampling steps to {last} there are "
            f"{halvings + 1} phases: give one relative length for each"
        )
    return [Phase(first >> i, *span) for i, span in enumerate(step_ranges(lengths, steps))]
