"""Continuous-time consistency: train the derivative of the student's image along a path to be zero.

Under the process `Cosine`, with its angle as t (π/2 times the time elsewhere), let F be the
student's velocity −sin t·x0/σ_d + cos t·eps in units of σ_d, and dx_t/dt the velocity of the path.
The loss is |F − sg(F + g/(|g| + c))|² with

    g = −cos²t·(σ_d·F − dx_t/dt) − r·cos t·sin t·(x_t + σ_d·dF/dt),   r = min(1, step/warmup)

At r = 1, g is cos t·dx0/dt, which includes the prior weight 1/(σ_d·tan t) of the paper. The
paper's adaptive weight, a second network that depends on t, is not implemented. Lu and Song 2024,
arXiv:2410.11081.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.backbones.derivatives import value_and_tangent
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import Loss, Method, Task, Turn, require_teacher
from fewstep.methods.batch import Batch
from fewstep.methods.checks import check_regular, check_spans
from fewstep.methods.schedule import check_steps, count_steps, is_share
from fewstep.process import Cosine, broadcast_to
from fewstep.ranges import NonNegative, Positive
from fewstep.sampling import Renoise
from fewstep.tables import check_fields
from fewstep.times import Density, Grid, LogNormal, UniformGrid

ANGLE = 0.5 * math.pi
"""Angle at t = 1."""


@dataclass(frozen=True)
class ScmConfig:
    """Settings of `Scm`."""

    source: Literal["teacher", "data"] = "teacher"
    """Velocity of the path: the `teacher`'s prediction (distillation), or that of the `data` with
    their noise (training without a teacher)."""
    sigma_data: Positive = 0.5
    """Standard deviation of the data, which scales the process."""
    density: Density = field(default_factory=lambda: LogNormal(mean=-1.0, std=1.4))
    """Distribution of the training times; `lognormal` has `mean` and `std` of ln(sigma/alpha)."""
    warmup: NonNegative = 0.02
    """Training steps over which r, the factor of the unstable term of g, rises from 0 to 1; a value
    below 1 is a share of all steps."""
    c: Positive = 0.1
    """Constant of the normalisation g/(|g| + c), above 0."""
    grid: Grid = field(default_factory=UniformGrid)
    """Times in [0, 1] at which the student is sampled, with fresh noise between them; 1 is the
    angle π/2."""

    def __post_init__(self) -> None:
        check_fields(self, "method")
        check_steps(self.warmup, "method.warmup")


class Scm(Method[ScmConfig]):
    """Train the student to predict the same image at all times of a path, by its derivative."""

    reads = frozenset({"images"})
    needs_teacher = False
    trains_at_all_times = True
    differentiates_in_time = True

    def __init__(self, config: ScmConfig, task: Task) -> None:
        check_regular(task.student)
        process, teacher = Cosine(config.sigma_data), task.teacher
        student = task.student.under(process)
        if config.source == "teacher":
            teacher = Generator(require_teacher(task).denoiser.under(process), task.spec)
            check_spans(student, teacher.denoiser)
        super().__init__(config, replace(task, student=student, teacher=teacher))
        self.warmup = count_steps(config.warmup, task.steps)

    @classmethod
    def length_settings(cls, config: ScmConfig) -> list[str]:
        return ["method.warmup"] if is_share(config.warmup) else []

    def warnings(self) -> list[str]:
        if self.warmup <= self.steps:
            return []
        return [
            f"method.warmup is {self.warmup} of {self.steps} training steps, so r ends at "
            f"{self.steps / self.warmup:.2g} and the student is not a consistency function: set it "
            "to a share of the training, such as 0.3"
        ]

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", lambda batch: self.student_loss(batch, step))

    def student_loss(self, batch: Batch, step: int) -> Loss:
        process, x0 = self.student.process, batch.images.x0
        t = self.config.density.times(batch.rand(), self.student)
        eps = batch.randn_like(x0)
        x_t = process.add_noise(x0, eps, t)
        path_velocity = self.path_velocity(x0, eps, x_t, t, batch)
        cos, sin = (broadcast_to(f(ANGLE * t), x_t) for f in (torch.cos, torch.sin))

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return self.student(x_t, t, cond=batch.images.cond).velocity / ANGLE

        # the derivative times cos·sin: so the derivative of the noise level stays finite at both
        # ends; the same pass computes the value, which is differentiable
        tangents = (cos * sin * path_velocity, (cos * sin).flatten() / ANGLE)
        value, derivative = value_and_tangent(velocity, (x_t, t), tangents)
        r = min(1.0, step / self.warmup) if self.warmup else 1.0
        with torch.no_grad():
            g = -cos.square() * (value - path_velocity) - r * (cos * sin * x_t + derivative)
            # root mean square, not the norm, so that c has the same effect at every image size
            rms = broadcast_to(g.square().flatten(1).mean(1).sqrt(), g)
            target = value / self.config.sigma_data + g / (rms + self.config.c)
        loss = squared_error(value / self.config.sigma_data, target).mean()
        return Loss(loss, {"tangent": rms.mean()})

    def path_velocity(
        self, x0: Tensor, eps: Tensor, x_t: Tensor, t: Tensor, batch: Batch
    ) -> Tensor:
        """dx_t/dt (b, ...) along the path, with t the angle."""
        with torch.no_grad():
            if self.config.source == "teacher":
                assert self.teacher
                return self.teacher.denoiser(x_t, t, cond=batch.images.cond).velocity / ANGLE
            alpha_rate, sigma_rate = self.student.process.rates_at(t, like=x_t)
            return (alpha_rate * x0 + sigma_rate * eps) / ANGLE

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=self.config.grid, step=Renoise())
