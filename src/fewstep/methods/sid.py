"""Score identity distillation: the two scores' difference, times an estimate of itself.

With x the student's image, x_t = alpha·x + sigma·eps, f the teacher's x0 at x_t, m the fake's:

    loss = ⟨f − m, (f − x) − a·(f − m)⟩/mean|x − f|,   gradient through x_t and both networks

Were m exact, m = E[x | x_t], the mean of ⟨f − m, f − x⟩ would be that of |f − m|², the distance of
the scores; the gradients are not alike, as the fake's weights are held, and the a that takes off
some of the second was found by trial. It reads no data (SiD, Zhou et al. 2024, arXiv:2404.04057)
but for an adversarial loss on the fake (SiDA, Zhou et al. 2024, arXiv:2410.14919).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from fewstep.condition import Condition
from fewstep.methods.base import Batch, Loss, Task, Turn
from fewstep.methods.fake_score import (
    AdversarialConfig,
    DistributionMatching,
    row_scale,
    student_images,
)
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class SidConfig:
    alpha: float = 1.2
    """a: how much of |f − m|² is taken off. 1.0 in SiDA."""
    steps: int = 1
    """Steps that the student takes; with more than 1 it is trained on its own earlier steps."""
    grid: Grid = field(default_factory=UniformGrid)
    """Their times; `fixed` for an earlier start: sigma 2.5 of 80 as published, [[0.03125]]."""
    density: Density = field(default_factory=lambda: Uniform(low=0.02, high=0.98))
    """Where the scores are compared; as published for EDM networks `karras` with high = 0.8."""
    fake_density: Density = field(default_factory=Uniform)
    """Where the fake is trained, and where the head looks; published: `lognormal`, as EDM."""
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    """SiDA's head on the fake."""


class Sid(DistributionMatching[SidConfig]):
    """A generator at whose images the teacher's score and their own agree."""

    def __init__(self, config: SidConfig, task: Task) -> None:
        super().__init__(config, task)
        self.reads = frozenset({"images"} if config.adversarial.weight else ())

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)
        yield Turn("fake", self.fake_loss)

    def student_loss(self, batch: Batch) -> Loss:
        x, cond = student_images(self.student, self.times, batch)
        t, eps = self.config.density.times(batch.rand(), self.real), batch.randn_like(x)
        rows, scale = self.identity(x, eps, t, cond)
        value = rows.mean()
        if not self.config.adversarial.weight:
            return Loss(value)
        # as published: at the same x_t, and divided by the same mean|x − f|
        fooling = (self.fake.generator_loss(x, eps, t, cond) * scale.flatten()).mean()
        numbers = {"identity": value, "fooling": fooling}
        return Loss(value + self.config.adversarial.weight * fooling, numbers)

    def identity(
        self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """Rows of the loss at the student's images `x`, and the 1/mean|x − f| in it."""
        x_t = self.real.process.add_noise(x, eps, t)
        real = self.real(x_t, t, cond=cond).x0
        apart = real - self.fake.score(x_t, t, cond=cond).x0
        scale = row_scale(x, real)
        rows = apart * (real - x - self.config.alpha * apart) * scale
        return rows.flatten(1).mean(1), scale
