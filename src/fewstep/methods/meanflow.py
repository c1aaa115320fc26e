"""MeanFlow: train the average velocity between times t and s, with a target from its derivative.

    u(x_t, t, s) = (x_t − x_s)/(t − s)
    target = v − (t − s)·(v·∂u/∂x_t + ∂u/∂t),   Δ = u − sg(target)
    loss = sg(1/(|Δ|² + c)^p)·|Δ|²

v is the velocity at x_t: eps − x0 of the batch's image and noise, or the teacher's prediction. One
forward-mode pass computes u and its derivative together. At s = t this is flow matching.
Geng et al. 2025, arXiv:2505.13447.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.backbones.derivatives import value_and_tangent
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.base import Loss, Method, Task, Turn, check_trainable_guidance, require_teacher
from fewstep.methods.batch import Batch
from fewstep.methods.checks import check_regular, check_spans
from fewstep.process import Flow, broadcast_to
from fewstep.ranges import NonNegative, Positive, Probability, ProbabilityBelowOne
from fewstep.sample_spec import SampleSpec
from fewstep.tables import check_fields
from fewstep.times import Density, Grid, LogNormal, UniformGrid


@dataclass(frozen=True)
class MeanflowConfig:
    """Settings of `Meanflow`."""

    density: Density = field(default_factory=lambda: LogNormal(mean=-0.4, std=1.0))
    """Distribution of the times: of two random times the larger is t, the smaller s. `lognormal`
    here is the logit-normal distribution of the paper."""
    density_s: Density | None = None
    """Distribution of s, if it differs from that of t. If s then exceeds t, it is set to t."""
    distinct: Probability = 0.25
    """Fraction of rows, 0 to 1, with s < t; the others have s = t. Published: 0.25, on CIFAR-10
    0.75."""
    p: NonNegative = 1.0
    """Power p of the adaptive weight 1/(|Δ|² + c)^p; 0 makes all weights 1."""
    c: Positive | None = None
    """Constant c of the adaptive weight, where |Δ|² is the sum over the elements of an image. None:
    0.001 as published, and with source = "teacher" half the number of elements, since a teacher's
    velocity has no noise that bounds the weights of rows with a small error."""
    source: Literal["data", "teacher"] = "data"
    """Velocity v: eps − x0 of the `data`, or the prediction of the `teacher` at x_t."""
    guidance: NonNegative = 1.0
    """Scale of the guidance that the student learns from data; 1 means no guidance. With source =
    "teacher", set teacher.guidance instead."""
    kappa: ProbabilityBelowOne = 0.0
    """Weight of the student's own velocity in the guided velocity, from 0 to below 1."""
    interval: tuple[Probability, Probability] = (0.0, 1.0)
    """The lowest and highest time at which the velocity is guided."""
    condition_dropout: Probability = 0.1
    """Fraction of rows, between 0 and 1, trained without their class or prompt; used only with
    guidance."""
    grid: Grid = field(default_factory=UniformGrid)
    """Times at which the student is sampled."""

    def __post_init__(self) -> None:
        check_fields(self, "method")

    @property
    def learns_guidance(self) -> bool:
        """Whether the student learns a guided velocity."""
        return self.guidance != 1 or self.kappa > 0


class Meanflow(Method[MeanflowConfig]):
    """Train a flow map from the average velocity between two times."""

    reads = frozenset({"images"})
    needs_teacher = False
    trains_at_all_times = True
    differentiates_in_time = True

    def __init__(self, config: MeanflowConfig, task: Task) -> None:
        check_regular(task.student)
        _check(config, task.spec)
        student = task.student.under(Flow()).as_flow_map()
        super().__init__(config, replace(task, student=student))
        default = 0.5 * math.prod(task.spec.shape) if config.source == "teacher" else 1e-3
        self.c = default if config.c is None else config.c
        if config.source == "teacher":
            check_spans(self.student, require_teacher(task).denoiser.under(Flow()))

    @classmethod
    def condition_dropout(cls, settings: Mapping[str, Any]) -> float:
        guided = settings.get("guidance", 1.0) != 1 or settings.get("kappa", 0.0) > 0
        return super().condition_dropout(settings) if guided else 0.0

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        x0, cond = batch.images.x0, batch.images.cond
        t, s = self.times(batch)
        eps = batch.randn_like(x0)
        x_t = self.student.process.add_noise(x0, eps, t)
        if self.config.learns_guidance:
            assert cond is not None
            cond = cond.drop(batch.rand() < self.config.condition_dropout)
        with torch.no_grad():
            v = self.velocity(eps - x0, x_t, t, cond)
        parts: list[Tensor] = []
        residuals = (self.squared_residual, self.squared_residual_at_t)
        for rows, squared_residual in zip(self.split_rows(batch), residuals, strict=True):
            if len(rows):
                rows = rows.to(x0.device)
                labels = None if cond is None else cond[rows]
                parts.append(squared_residual(x_t[rows], v[rows], t[rows], s[rows], labels))
        square = torch.cat(parts)
        weight = 1 / (square.detach() + self.c) ** self.config.p
        return Loss((weight * square).mean(), {"error": square.mean() / x0[0].numel()})

    def squared_residual(
        self, x_t: Tensor, v: Tensor, t: Tensor, s: Tensor, cond: Condition | None
    ) -> Tensor:
        """|Δ|² (b,), differentiable through u only; one pass computes u and its derivative."""

        def average(x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
            return self.student(x_t, t, s=s, cond=cond).velocity

        tangents = (v, torch.ones_like(t), torch.zeros_like(s))
        u, derivative = value_and_tangent(average, (x_t, t, s), tangents)
        target = v - broadcast_to(t - s, v) * derivative
        return (u - target).square().flatten(1).sum(1)

    def squared_residual_at_t(
        self, x_t: Tensor, v: Tensor, t: Tensor, s: Tensor, cond: Condition | None
    ) -> Tensor:
        """|Δ|² (b,) at s = t, where the derivative has the factor t − s = 0 and is not computed."""
        u = self.student(x_t, t, s=t, cond=cond).velocity
        return (u - v).square().flatten(1).sum(1)

    def times(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Times t and s ≤ t for each row."""
        t = self.config.density.times(batch.rand(), self.student)
        second = self.config.density_s
        s = (second or self.config.density).times(batch.rand(), self.student)
        return (t if second else torch.maximum(t, s)), torch.minimum(t, s)

    def split_rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Indices of the rows with s < t, and of those with s = t.

        Both kinds are spread evenly over the global batch, so that each micro-batch and rank has
        the same fraction of the more expensive rows with s < t. Their number is the same at every
        step.
        """
        index = torch.arange(batch.first, batch.first + batch.rows + 1, dtype=torch.float64)
        distinct = torch.floor(index * self.config.distinct).diff() > 0
        return distinct.nonzero().flatten(), (~distinct).nonzero().flatten()

    def velocity(self, plain: Tensor, x_t: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """v (b, ...): the teacher's velocity, the data's velocity `plain`, or a guided velocity.

            guided = omega·v + kappa·u(x_t, t, t | cond) + (1 − omega − kappa)·u(x_t, t, t),
            omega = guidance·(1 − kappa)

        Rows without class and prompt, and times outside the interval are not guided.
        """
        if self.config.source == "teacher":
            assert self.teacher
            return self.teacher.denoiser.under(Flow())(x_t, t, cond=cond).velocity
        if not self.config.learns_guidance:
            return plain
        assert cond is not None
        kappa = self.config.kappa
        omega = self.config.guidance * (1 - kappa)
        conditional = self.student(x_t, t, s=t, cond=cond).velocity
        unconditional = self.student(x_t, t, s=t, cond=cond.null()).velocity
        guided = omega * plain + kappa * conditional + (1 - omega - kappa) * unconditional
        inside = cond.is_present() & (t >= self.config.interval[0]) & (t <= self.config.interval[1])
        return torch.where(broadcast_to(inside, plain) > 0, guided, plain)

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=self.config.grid)


def _check(config: MeanflowConfig, spec: SampleSpec) -> None:
    if not config.learns_guidance:
        return
    if config.source == "teacher":
        raise InputError(
            "method.guidance and method.kappa guide the velocity of the data, but method.source is "
            '"teacher": remove them and set teacher.guidance'
        )
    check_trainable_guidance("method.guidance (or method.kappa)", config.condition_dropout, spec)
