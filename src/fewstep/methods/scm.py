"""Continuous-time consistency: the student's image does not move along the path, by derivative.

Under `Cosine` in its angle t (π/2 times ours), with F = −sin t·x0/σ_d + cos t·eps the student's
velocity in units of σ_d and dx_t/dt the path's own, the loss is |F − sg(F + g/(|g| + c))|² with

    g = −cos²t·(σ_d·F − dx_t/dt) − r·cos t·sin t·(x_t + σ_d·dF/dt),   r = min(1, step/warmup)

At r = 1, g is cos t·dx0/dt: the prior weight 1/(σ_d·tan t) of the paper is in it. Its learnt weight
over t is left out.  Lu and Song 2024, arXiv:2410.11081 (sCM).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.backbones.derivatives import value_and_tangent
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import (
    Batch,
    Loss,
    Method,
    Task,
    Turn,
    check_regular,
    check_spans,
    require_teacher,
)
from fewstep.process import Cosine, broadcast_to
from fewstep.sampling import Renoise
from fewstep.times import Density, Grid, LogNormal, UniformGrid

ANGLE = 0.5 * math.pi
"""Of our whole span of time."""


@dataclass(frozen=True)
class ScmConfig:
    source: Literal["teacher", "data"] = "teacher"
    """Of dx_t/dt: the `teacher`'s velocity (distillation), or the `data`'s own (training)."""
    sigma_data: float = 0.5
    """The data's standard deviation, by which the clock is set."""
    density: Density = field(default_factory=lambda: LogNormal(mean=-1.0, std=1.4))
    """Where training times lie, by ln(sigma/alpha)."""
    warmup: int = 10_000
    """Steps over which r, the share of the unstable half of the derivative, rises to 1."""
    c: float = 0.1
    """Added to the length of g by which it is divided."""
    grid: Grid = field(default_factory=UniformGrid)
    """The times at which the student is sampled, renoising in between; of the angle, 0 … π/2, they
    are the share."""


class Scm(Method[ScmConfig]):
    """Hold the student's image still along each path from noise to image."""

    reads = frozenset({"images"})
    needs_teacher = False

    def __init__(self, config: ScmConfig, task: Task) -> None:
        check_regular(task.student)
        if not config.sigma_data > 0 or not config.c > 0 or config.warmup < 0:
            raise InputError("method.sigma_data and method.c must be above 0, warmup at least 0")
        process, teacher = Cosine(config.sigma_data), task.teacher
        student = task.student.under(process)
        if config.source == "teacher":
            teacher = Generator(require_teacher(task).denoiser.under(process), task.spec)
            check_spans(student, teacher.denoiser)
        super().__init__(config, replace(task, student=student, teacher=teacher))

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", lambda batch: self.student_loss(batch, step))

    def student_loss(self, batch: Batch, step: int) -> Loss:
        process, x0 = self.student.process, batch.images.x0
        t = self.config.density.times(batch.rand(), self.student)
        eps = batch.randn_like(x0)
        x_t = process.add_noise(x0, eps, t)
        slope = self.slope(x0, eps, x_t, t, batch)
        cos, sin = (broadcast_to(f(ANGLE * t), x_t) for f in (torch.cos, torch.sin))

        def circling(x_t: Tensor, t: Tensor) -> Tensor:
            return self.student(x_t, t, cond=batch.images.cond).velocity / ANGLE

        # both derivatives times cos·sin, which keeps that of the level finite at both ends; the
        # value has its gradient from the same pass
        ways = (cos * sin * slope, (cos * sin).flatten() / ANGLE)
        said, change = value_and_tangent(circling, (x_t, t), ways)
        r = min(1.0, step / self.config.warmup) if self.config.warmup else 1.0
        with torch.no_grad():
            g = -cos.square() * (said - slope) - r * (cos * sin * x_t + change)
            # root mean square, not the sum's: c then means the same at every size of image
            length = broadcast_to(g.square().flatten(1).mean(1).sqrt(), g)
            target = said / self.config.sigma_data + g / (length + self.config.c)
        loss = squared_error(said / self.config.sigma_data, target).mean()
        return Loss(loss, {"tangent": length.mean()})

    def slope(self, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """dx_t/dt of the angle along the path."""
        with torch.no_grad():
            if self.config.source == "teacher":
                assert self.teacher
                said = self.teacher.denoiser(x_t, t, cond=batch.images.cond)
                return said.velocity / ANGLE
            alpha_rate, sigma_rate = self.student.process.rates_at(t, like=x_t)
            return (alpha_rate * x0 + sigma_rate * eps) / ANGLE

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=self.config.grid, step=Renoise())
