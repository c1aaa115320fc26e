"""Train a teacher. DDPM, EDM and flow matching have one loss with different parametrizations.

    loss = w(t)·mean (output − (a·x0 + b·eps))²

The parametrization defines a and b. With w = 1 this is DDPM's simple loss under `Eps` (Ho et al.
2020, arXiv:2006.11239), the loss of EDM under `EDM` (Karras et al. 2022, arXiv:2206.00364) and that
of flow matching under `Velocity` (Lipman et al. 2022, arXiv:2210.02747).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from fewstep.denoiser import Prediction
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import Loss, Method, Turn
from fewstep.methods.batch import Batch
from fewstep.plugins import name_of
from fewstep.ranges import Positive, Probability
from fewstep.sampling import Step, Transfer
from fewstep.tables import check_fields
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class DenoiseConfig:
    """Settings of `Denoise`."""

    density: Density = field(default_factory=Uniform)
    """Distribution of the training times: `uniform`, or `lognormal` with `mean` and `std` of
    ln(sigma/alpha)."""
    weight: Literal["none", "snr", "min-snr"] = "none"
    """Weight of the squared error: `none` is 1 on the error of the raw output; `snr` is the SNR and
    `min-snr` is min(SNR, gamma) on the error of x0."""
    gamma: Positive = 5.0
    """Largest weight under `min-snr`; published: 5 (Hang et al. 2023, arXiv:2303.09556)."""
    condition_dropout: Probability = 0.1
    """Fraction of rows, 0 to below 1, trained without their class or prompt, for classifier-free
    guidance."""
    sampler: Step = field(default_factory=Transfer)
    """Sampler of the trained network: `transfer` (Euler, or DDIM), `heun` (2N − 1 network calls in
    N steps, published for EDM), `multistep`, `ancestral` (DDPM's), `renoise` or `corrector`."""
    grid: Grid = field(default_factory=UniformGrid)
    """Times at which the trained network is sampled: `uniform` or `karras`."""

    def __post_init__(self) -> None:
        check_fields(self, "method")
        if self.sampler.own_grid:
            raise InputError(
                f"method.sampler is {name_of('sampler', type(self.sampler))}, which samples only "
                "networks of its own kind: choose another, such as transfer"
            )


class Denoise(Method[DenoiseConfig]):
    """Train a denoiser on images with added noise."""

    reads = frozenset({"images"})
    needs_teacher = False
    uses_first_image = False
    trains_at_all_times = True

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        x0, cond = batch.images.x0, batch.images.cond
        t = self.config.density.times(batch.rand(), self.student)
        eps = batch.randn_like(x0)
        if cond is not None and self.config.condition_dropout > 0:
            cond = cond.drop(batch.rand() < self.config.condition_dropout)
        prediction = self.student(self.student.process.add_noise(x0, eps, t), t, cond=cond)
        error = squared_error(prediction.output, prediction.target(x0, eps))
        return Loss((self.weight(prediction) * error).mean())

    def weight(self, prediction: Prediction) -> Tensor | float:
        """Weight (b,) of the squared error of the raw output, from that of the x0 error.

        x0 is affine in the output, so the x0 error is the output error times the output's factor.
        """
        if self.config.weight == "none":
            return 1.0
        _, output_factor = prediction.coefficients.x0
        snr = (prediction.alpha / prediction.sigma).square()
        if self.config.weight == "min-snr":
            snr = snr.clamp(max=self.config.gamma)
        return (snr * output_factor.square()).flatten()

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=self.config.grid, step=self.config.sampler)
