"""Score identity distillation: minimise a distance between the scores of teacher and student.

With x the student's image, x_t = alpha·x + sigma·eps, f the teacher's x0 at x_t, and m the x0 at
x_t of the fake score, a second denoiser that trains on the student's images:

    loss = ⟨f − m, (f − x) − a·(f − m)⟩/mean|x − f|,   gradient through x_t and both networks

|f − m|² is the squared distance of the scores. If m were exact, m = E[x | x_t], then ⟨f − m, f − x⟩
would have the same mean. But their gradients differ, because the weights of m are constants in the
student's loss; the authors found the weight a of the subtracted |f − m|² by experiment. SiD reads
no data (Zhou et al. 2024, arXiv:2404.04057). SiDA adds an adversarial loss, whose discriminator
also reads real images (Zhou et al. 2024, arXiv:2410.14919):

    λ·softplus(−logit(x_t)),   with the same weight for each image

The authors' code multiplies this loss, averaged over a batch, by the mean of 1/mean|x − f| over the
same batch. Its expectation is part of λ here (docs/methods.md), so that micro-batches add up.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from fewstep.condition import Condition
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.base import Loss, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.methods.fake_score import FakeConfig, row_scale, student_images
from fewstep.methods.matching import DistributionMatching
from fewstep.ranges import NonNegative, SamplingSteps
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class SidConfig:
    """Settings of `Sid`."""

    alpha: NonNegative = 1.2
    """a, the weight of the squared score distance that is subtracted; in SiD 1.2, in SiDA 1.0."""
    steps: SamplingSteps = 1
    """Number of steps of the student. With more than 1, later steps train on the student's own
    images of the earlier ones."""
    grid: Grid = field(default_factory=UniformGrid)
    """Times of these steps. Published: one step from sigma = 2.5, with a largest sigma of 80, which
    is `fixed` with [[0.03125]]."""
    density: Density = field(default_factory=lambda: Uniform(low=0.02, high=0.98))
    """Distribution of the times at which the two scores are compared. Published for EDM networks:
    `karras` with high = 0.8."""
    fake: FakeConfig = field(default_factory=FakeConfig)
    """The fake score: `density` of its training times, `dropout`, and `warmup`, steps before the
    student trains."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """Discriminator head on the fake score, as in SiDA; weight = 0 is SiD, without a head."""


class Sid(DistributionMatching[SidConfig]):
    """Train a generator so that the score of its images agrees with the teacher's score."""

    def __init__(self, config: SidConfig, task: Task) -> None:
        super().__init__(config, task)
        self.reads = frozenset({"images"} if config.adversarial.weight else ())

    def turns(self, step: int) -> Iterator[Turn]:
        if self.student_trains(step):
            yield Turn("student", self.student_loss)
        yield Turn("fake", self.fake_loss)

    def student_loss(self, batch: Batch) -> Loss:
        x, cond = student_images(self.student, self.times, batch)
        t, eps = self.config.density.times(batch.rand(), self.real), batch.randn_like(x)
        value = self.identity_loss(x, eps, t, cond).mean()
        if not self.is_adversarial(batch.step):
            return Loss(value)
        # as published, at the same x_t
        generator_loss = self.fake.generator_loss(x, eps, t, cond).mean()
        numbers = {"identity": value, "generator_loss": generator_loss}
        return Loss(value + self.config.adversarial.weight * generator_loss, numbers)

    def identity_loss(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """The loss (b,) at the student's images `x`."""
        x_t = self.real.process.add_noise(x, eps, t)
        real = self.real(x_t, t, cond=cond).x0
        difference = real - self.fake.score(x_t, t, cond=cond).x0
        rows = difference * (real - x - self.config.alpha * difference) * row_scale(x, real)
        return rows.flatten(1).mean(1)
