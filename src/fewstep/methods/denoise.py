"""Teachers: DDPM, EDM and flow matching are one loss, told apart by process and parametrization.

    loss = w(t)·mean (output − (a·x0 + b·eps))²

Unweighted it *is* DDPM's simple loss under `Eps` (Ho et al. 2020, arXiv:2006.11239), EDM's under
`EDM` (Karras et al. 2022, arXiv:2206.00364) and flow matching under `Velocity` (Lipman et al. 2022,
arXiv:2210.02747).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fewstep.denoiser import Prediction
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import Batch, Loss, Method, Turn
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class DenoiseConfig:
    density: Density = field(default_factory=Uniform)
    """Where training times lie: `uniform`, or `lognormal` with `mean` and `std` of ln(ratio)."""
    weight: Literal["none", "snr", "min-snr"] = "none"
    """Of the loss: none, on the raw output; else SNR, or min(SNR, gamma), on the x0 error."""
    gamma: float = 5.0
    """The bound of `min-snr`.  Hang et al. 2023, arXiv:2303.09556."""
    label_dropout: float = 0.1
    """Share of rows trained without their label, for classifier-free guidance."""
    grid: Grid = field(default_factory=UniformGrid)
    """The times at which the trained network is sampled: `uniform` or `karras`."""


class Denoise(Method[DenoiseConfig]):
    """Predict what the parametrization asks of x_t."""

    reads = frozenset({"images"})
    needs_teacher = False

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        x0, cond = batch.images.x0, batch.images.cond
        t = self.config.density.times(batch.rand(), self.student)
        eps = batch.randn_like(x0)
        if cond is not None and self.config.label_dropout > 0:
            cond = cond.drop(batch.rand() < self.config.label_dropout)
        said = self.student(self.student.process.add_noise(x0, eps, t), t, cond=cond)
        a, b = said.parametrization.row(said.alpha, said.sigma)
        return Loss((self.weight(said) * squared_error(said.output, a * x0 + b * eps)).mean())

    def weight(self, said: Prediction) -> Tensor | float:
        """The weight on the raw output's error, one a row: (sigma/D)² times that of x0's error."""
        if self.config.weight == "none":
            return 1.0
        _, out = said.parametrization.skip_out(said.alpha, said.sigma)
        snr = (said.alpha / said.sigma).square()
        if self.config.weight == "min-snr":
            snr = snr.clamp(max=self.config.gamma)
        return (snr * out.square()).flatten()

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=self.config.grid)
