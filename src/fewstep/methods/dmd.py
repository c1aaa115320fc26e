"""Distribution matching: move the student's images along the difference of two scores.

With x the student's image, x_t = alpha·x + sigma·eps, m_f the fake's x0 at x_t, m_r the teacher's:

    g = (m_f − m_r)/mean|x − m_r|,   loss = ½|x − sg(x − g)|² + weights·(regression, adversarial)

so that the loss's gradient at x is g. The fake starts as the teacher without guidance, which is the
teacher's alone, and is trained on the student's images all the while. Regression is on recorded
pairs (Yin et al. 2023, arXiv:2311.18828); without it the fake takes several turns to the student's
one, and an adversarial loss may take its place (DMD2, Yin et al. 2024, arXiv:2405.14867).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.losses import Distance, SquaredError, squared_error
from fewstep.methods.base import Batch, Loss, Task, Turn
from fewstep.methods.fake_score import (
    AdversarialConfig,
    DistributionMatching,
    row_scale,
    student_images,
)
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class DmdConfig:
    steps: int = 1
    """Steps that the student takes; with more than 1 it is trained on its own earlier steps."""
    grid: Grid = field(default_factory=UniformGrid)
    """Their times; `fixed` for an earlier start, [[0.4]] say, than an eps network's last time."""
    density: Density = field(default_factory=lambda: Uniform(low=0.02, high=0.98))
    """Where the two scores are compared: `uniform`; `karras` as published for EDM networks."""
    fake_density: Density = field(default_factory=Uniform)
    """Where the fake is trained, and where the head looks."""
    every: int = 1
    """Steps from one student turn to the next; the fake takes a turn each step. 5 in DMD2."""
    regression: float = 0.0
    """Weight of the regression; 0: no pairs are read. 0.25 as published with LPIPS."""
    loss: Distance = field(default_factory=SquaredError)
    """Distance of the regression between the student's image and the pair's."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """DMD2's head on the fake; 0.003 of the student's loss and 0.01 of the fake's there."""


class Dmd(DistributionMatching[DmdConfig]):
    """A generator whose images a score network cannot tell from the teacher's."""

    def __init__(self, config: DmdConfig, task: Task) -> None:
        super().__init__(config, task)
        if config.every < 1 or config.regression < 0:
            raise InputError("method.every must be 1 or more, and method.regression 0 or more")
        needs = {"pairs": config.regression, "images": config.adversarial.weight}
        self.reads = frozenset(name for name, weight in needs.items() if weight)

    def turns(self, step: int) -> Iterator[Turn]:
        if step % self.config.every == 0:
            yield Turn("student", self.student_loss)
        yield Turn("fake", self.fake_loss)

    def student_loss(self, batch: Batch) -> Loss:
        x, cond = student_images(self.student, self.times, batch)
        g = self.direction(batch, x.detach(), cond)
        value = 0.5 * squared_error(x, x.detach() - g).mean()
        numbers = {"direction": g.abs().mean()}
        if self.config.regression:
            numbers["regression"] = self.regression(batch)
            value = value + self.config.regression * numbers["regression"]
        if self.config.adversarial.weight:
            t, eps = self.fake.times(batch), batch.randn_like(x)
            numbers["fooling"] = self.fake.generator_loss(x, eps, t, cond).mean()
            value = value + self.config.adversarial.weight * numbers["fooling"]
        return Loss(value, numbers)

    @torch.no_grad()
    def direction(self, batch: Batch, x: Tensor, cond: Condition | None) -> Tensor:
        """g (b, ...): from real to fake, as both scores see the images `x`."""
        t = self.config.density.times(batch.rand(), self.real)
        x_t = self.real.process.add_noise(x, batch.randn_like(x), t)
        real = self.real(x_t, t, cond=cond).x0
        return (self.fake.score(x_t, t, cond=cond).x0 - real) * row_scale(x, real)

    def regression(self, batch: Batch) -> Tensor:
        """How far the student's images are from the pairs', its first step taken as in sampling."""
        pairs = batch.pairs
        _, sigma = self.student.process.at(self.times[0], like=pairs.noise)
        said = self.student(sigma * pairs.noise, self.times[0], cond=pairs.cond)
        return self.config.loss(said.x0, pairs.x0).mean()
