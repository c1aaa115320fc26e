"""Consistency models: predict one image at all noise levels, from pairs of neighbouring levels.

With x_t and x_r on one path at levels r < t, and D the student's x0:

    loss = w·d(D(x_t, t), sg D'(x_r, r)),   D' at the lowest level: the image itself

D' is the student or its average. In consistency training, x_r has the image and noise of x_t; in
consistency distillation, it is one step of a teacher's ODE from x_t. CD (distillation) and CT
(training): Song et al. 2023, arXiv:2303.01469. iCT (improved training): Song and Dhariwal 2023,
arXiv:2310.14189. ECT (easy consistency tuning): Geng et al. 2024, arXiv:2406.14548.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep import ema
from fewstep.generator import Generator
from fewstep.levels import DiscreteLevels, EctLevels, Levels
from fewstep.losses import Distance, PseudoHuber
from fewstep.methods.base import Loss, Method, Task, Turn, require_teacher
from fewstep.methods.batch import Batch
from fewstep.methods.checks import check_regular
from fewstep.process import broadcast_to
from fewstep.ranges import ProbabilityBelowOne
from fewstep.sampling import Renoise
from fewstep.times import Density, Grid, LogNormal, UniformGrid

MIN_VARIANCE_SHARE = 0.95
"""Smallest `Levels.variance_share` at the last training step without a warning."""


@dataclass(frozen=True)
class ConsistencyConfig:
    """Settings of `Consistency`."""

    source: Literal["data", "teacher"] = "data"
    """Source of x_r: the image and noise of the `data` (CT, iCT, ECT), or a step of the `teacher`
    from x_t (CD)."""
    solver: Literal["euler", "heun"] = "heun"
    """Solver of the teacher's step: `euler` (DDIM, one network call) or `heun` (two calls)."""
    levels: Levels = field(default_factory=EctLevels)
    """Rule for the two levels t and r: `ect` computes r from t; `ladder` takes neighbours of a list
    of discrete levels."""
    density: Density = field(default_factory=lambda: LogNormal(mean=-1.1, std=2.0))
    """Distribution of t, the larger level. With the levels `ladder`, `karras` makes all pairs
    equally likely."""
    weight: Literal["gap", "none"] = "gap"
    """Weight of each row's distance in the loss: `gap` is 1/(t − r) (ECT, iCT), `none` is 1 (CD,
    CT)."""
    loss: Distance = field(default_factory=lambda: PseudoHuber(c=0.0))
    """Distance between the two images; `pseudo-huber` with c = 0 is the Euclidean norm."""
    target_decay: ProbabilityBelowOne = 0.0
    """Decay per training step of the average D' that predicts at r, below 1; 0 means that D' is the
    student. With the levels `ladder`, of which there are N by then, it is decay^(first/N)."""
    grid: Grid = field(default_factory=UniformGrid)
    """Times at which the student is sampled, with fresh noise between them."""


class Consistency(Method[ConsistencyConfig]):
    """Train the student to predict the same image at two neighbouring levels of a path."""

    reads = frozenset({"images"})
    needs_teacher = False
    trains_at_all_times = True

    def __init__(self, config: ConsistencyConfig, task: Task) -> None:
        student, teacher = task.student, task.teacher
        check_regular(student)
        process, ratios = student.process, torch.tensor(config.levels.bounds, dtype=torch.float64)
        spans = [student.span, process.time(ratios).tolist()]
        if config.source == "teacher":
            teacher = Generator(require_teacher(task).denoiser.under(process), task.spec)
            spans.append(teacher.denoiser.span)
        common = max(low for low, _ in spans), min(high for _, high in spans)
        student = student.replace(span=common)
        super().__init__(config, replace(task, student=student, teacher=teacher))
        span = torch.tensor(common, dtype=torch.float64)
        self.ends: list[float] = process.ratio(span).tolist()
        self.target = deepcopy(student) if config.target_decay else None

    @classmethod
    def length_settings(cls, config: ConsistencyConfig) -> list[str]:
        return ["method.levels"] if config.levels.changes else []

    def warnings(self) -> list[str]:
        """Warns if the levels t and r are still far apart at the end of the training."""
        if self.config.source == "teacher":  # a step of its ODE keeps the variance
            return []
        share = self.config.levels.variance_share(1.0, self.ends)
        if share >= MIN_VARIANCE_SHARE:
            return []
        return [
            "the gap between the two noise levels is still large at the end of the training: of "
            f"Gaussian data, images would have {share:.0%} of the variance, and more sampling "
            "steps make it worse; raise method.levels.stages or method.levels.q (of the levels "
            '"ladder": method.levels.last)'
        ]

    def turns(self, step: int) -> Iterator[Turn]:
        progress = min(step / self.steps, 1.0)
        yield Turn("student", lambda batch: self.student_loss(batch, progress))
        if self.target:
            levels, decay = self.config.levels, self.config.target_decay
            if isinstance(levels, DiscreteLevels):
                decay **= levels.first / levels.count(progress)
            ema.follow(self.target, self.student, decay=decay)

    def student_loss(self, batch: Batch, progress: float) -> Loss:
        """The loss after this share, 0 to 1, of the training."""
        student, process, low = self.student, self.student.process, self.student.span[0]
        x0, cond = batch.images.x0, batch.images.cond
        ratio = process.ratio(self.config.density.times(batch.rand(), student))
        upper, lower, gap = self.config.levels.around(ratio, progress, self.ends)
        t, r = process.time(upper), process.time(lower).clamp(min=low)
        eps = batch.randn_like(x0)
        x_t = process.add_noise(x0, eps, t)
        with torch.no_grad():
            if self.config.source == "teacher":
                x_r = self.teacher_step(x_t, t, r, batch)
                image = x_r / process.at(r, like=x_r)[0]
            else:
                x_r, image = process.add_noise(x0, eps, r), x0
            target_network = (self.target or student).train(student.training)
            with batch.same_dropout():
                target = target_network(x_r, r, cond=cond).x0
            # the tolerance is above rounding errors and far below the distance between two levels
            target = torch.where(broadcast_to(r, x0) <= 1.0001 * low, image, target)
        with batch.same_dropout():
            x0_student = student(x_t, t, cond=cond).x0
        loss = self.config.loss(x0_student, target)
        if self.config.weight == "gap":
            loss = loss / gap.clamp(min=1e-6)  # only a random number of 0 gives a smaller gap
        return Loss(loss.mean())

    def teacher_step(self, x_t: Tensor, t: Tensor, r: Tensor, batch: Batch) -> Tensor:
        """x_r, one step of the teacher's ODE from x_t."""
        assert self.teacher
        teacher, cond = self.teacher.denoiser, batch.images.cond
        prediction = teacher(x_t, t, cond=cond)
        if self.config.solver == "euler":
            alpha, sigma = teacher.process.at(r, like=x_t)
            return alpha * prediction.x0 + sigma * prediction.eps
        stride, velocity = broadcast_to(r - t, x_t), prediction.velocity
        end = teacher(x_t + stride * velocity, r, cond=cond)
        return x_t + 0.5 * stride * (velocity + end.velocity)

    def generator(self) -> Generator:
        for count in self.config.grid.counts:
            self.config.grid(count, self.student)  # raises for times outside the student's span
        return Generator(self.student, self.spec, grid=self.config.grid, step=Renoise())
