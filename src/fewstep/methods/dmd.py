"""Distribution matching: move the student's images along the difference of two scores.

With x the student's image, x_t = alpha·x + sigma·eps, m_f the x0 of the fake score at x_t, and m_r
that of the teacher:

    g = (m_f − m_r)/mean|x − m_r|
    loss = ½|x − sg(x − g)|² + λ_regression·regression + λ_adversarial·adversarial

so that the gradient of the first term at x is g. The fake score is a second denoiser, which starts
as the teacher without guidance and trains on the student's images during the whole run. DMD adds a
regression loss on recorded pairs (Yin et al. 2023, arXiv:2311.18828). DMD2 instead trains the fake
score several times per update of the student, and can add an adversarial loss (Yin et al. 2024,
arXiv:2405.14867).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.losses import Distance, SquaredError, squared_error
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.base import Loss, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.methods.fake_score import FakeConfig, row_scale, student_images
from fewstep.methods.matching import DistributionMatching
from fewstep.ranges import Count, NonNegative, SamplingSteps
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class DmdConfig:
    """Settings of `Dmd`."""

    steps: SamplingSteps = 1
    """Number of steps of the student. With more than 1, later steps train on the student's own
    images of the earlier ones."""
    grid: Grid = field(default_factory=UniformGrid)
    """Times of these steps, from student.start on."""
    density: Density = field(default_factory=lambda: Uniform(low=0.02, high=0.98))
    """Distribution of the times at which the two scores are compared: `uniform`, or `karras` as
    published for EDM networks."""
    fake: FakeConfig = field(default_factory=FakeConfig)
    """The fake score: `density` of its training times, `dropout`, and `warmup`, steps before the
    student trains."""
    every: Count = 1
    """Training steps from one update of the student to the next; the fake score is updated at every
    step. In DMD2: 5."""
    regression: NonNegative = 0.0
    """λ_regression, the weight of the regression loss; at 0 no pairs are read. Published with
    LPIPS: 0.25."""
    loss: Distance = field(default_factory=SquaredError)
    """Distance between the student's image and the recorded one, in the regression loss."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Discriminator head on the fake score; `weight` is λ_adversarial. In DMD2: weight = 0.003,
    head_weight = 0.01."""


class Dmd(DistributionMatching[DmdConfig]):
    """Train a generator whose images have the distribution of the teacher's."""

    def __init__(self, config: DmdConfig, task: Task) -> None:
        super().__init__(config, task)
        loss_weights = {"pairs": config.regression, "images": config.adversarial.weight}
        self.reads = frozenset(stream for stream, weight in loss_weights.items() if weight)

    def turns(self, step: int) -> Iterator[Turn]:
        if self.student_trains(step, self.config.every):
            yield Turn("student", self.student_loss)
        yield Turn("fake", self.fake_loss)

    def student_loss(self, batch: Batch) -> Loss:
        x, cond = student_images(self.student, self.times, batch)
        g = self.gradient(batch, x.detach(), cond)
        value = 0.5 * squared_error(x, x.detach() - g).mean()
        numbers = {"direction": g.abs().mean()}
        if self.config.regression:
            numbers["regression"] = self.regression_loss(batch)
            value = value + self.config.regression * numbers["regression"]
        if self.is_adversarial(batch.step):
            t, eps = self.fake.times(batch), batch.randn_like(x)
            numbers["generator_loss"] = self.fake.generator_loss(x, eps, t, cond).mean()
            value = value + self.config.adversarial.weight * numbers["generator_loss"]
        return Loss(value, numbers)

    @torch.no_grad()
    def gradient(self, batch: Batch, x: Tensor, cond: Condition | None) -> Tensor:
        """g (b, ...) at images `x`: the fake score's x0 minus the teacher's, with `row_scale`."""
        t = self.config.density.times(batch.rand(), self.real)
        x_t = self.real.process.add_noise(x, batch.randn_like(x), t)
        real = self.real(x_t, t, cond=cond).x0
        return (self.fake.score(x_t, t, cond=cond).x0 - real) * row_scale(x, real)

    def regression_loss(self, batch: Batch) -> Tensor:
        """Mean distance between the student's x0 at the first time and the recorded images."""
        pairs = batch.pairs
        x_t = self.student.process.start(pairs.noise, self.times[0])
        prediction = self.student(x_t, self.times[0], cond=pairs.cond)
        return self.config.loss(prediction.x0, pairs.x0).mean()
