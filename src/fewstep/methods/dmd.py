"""Distribution matching: move the student's images along the difference of two scores.

With x the student's image, x_t = alpha·x + sigma·eps, m_f the fake score's x0 at x_t, and m_r the
teacher's:

    g = (m_f − m_r)/mean|x − m_r|,   loss = ½|x − sg(x − g)|² + weights·(regression, adversarial)

so that the gradient of the loss at x is g. The fake score starts as the teacher without guidance,
and is trained on the student's images throughout. DMD adds a regression on recorded pairs (Yin et
al. 2023, arXiv:2311.18828). DMD2 trains the fake several times per student update instead, and can
add an adversarial loss (Yin et al. 2024, arXiv:2405.14867).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.losses import Distance, SquaredError, squared_error
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.base import Loss, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.methods.fake_score import DistributionMatching, row_scale, student_images
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class DmdConfig:
    steps: int = 1
    """Number of steps of the student. With more than 1, later steps train on the student's own
    images of the earlier ones."""
    grid: Grid = field(default_factory=UniformGrid)
    """Times of these steps. `fixed`, such as [[0.4]], starts at less noise than the network's
    noisiest time, at which an eps network determines no image."""
    density: Density = field(default_factory=lambda: Uniform(low=0.02, high=0.98))
    """Distribution of the times at which the two scores are compared: `uniform`, or `karras` as
    published for EDM networks."""
    fake_density: Density = field(default_factory=Uniform)
    """Distribution of the times at which the fake score and its head are trained."""
    every: int = 1
    """Training steps from one update of the student to the next; the fake score is updated at every
    step. In DMD2: 5."""
    regression: float = 0.0
    """Weight of the regression loss; at 0 no pairs are read. Published with LPIPS: 0.25."""
    loss: Distance = field(default_factory=SquaredError)
    """Distance between the student's image and the recorded one, in the regression."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Adversarial head on the fake score. In DMD2: weight = 0.003, head_weight = 0.01."""


class Dmd(DistributionMatching[DmdConfig]):
    """Train a generator whose images have the distribution of the teacher's."""

    def __init__(self, config: DmdConfig, task: Task) -> None:
        super().__init__(config, task)
        if config.every < 1 or config.regression < 0:
            raise InputError(
                f"method.every is {config.every} and method.regression {config.regression}; they "
                "must be at least 1 and 0"
            )
        weights = {"pairs": config.regression, "images": config.adversarial.weight}
        self.reads = frozenset(stream for stream, weight in weights.items() if weight)

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
            numbers["generator_loss"] = self.fake.generator_loss(x, eps, t, cond).mean()
            value = value + self.config.adversarial.weight * numbers["generator_loss"]
        return Loss(value, numbers)

    @torch.no_grad()
    def direction(self, batch: Batch, x: Tensor, cond: Condition | None) -> Tensor:
        """g (b, ...): the scaled difference of the fake's and the teacher's x0 at images `x`."""
        t = self.config.density.times(batch.rand(), self.real)
        x_t = self.real.process.add_noise(x, batch.randn_like(x), t)
        real = self.real(x_t, t, cond=cond).x0
        return (self.fake.score(x_t, t, cond=cond).x0 - real) * row_scale(x, real)

    def regression(self, batch: Batch) -> Tensor:
        """Mean distance between the student's first prediction and the recorded images."""
        pairs = batch.pairs
        x_t = self.student.process.start(pairs.noise, self.times[0])
        prediction = self.student(x_t, self.times[0], cond=pairs.cond)
        return self.config.loss(prediction.x0, pairs.x0).mean()
