"""Train a teacher. DDPM, EDM and flow matching have one loss with different parametrizations.

    loss = w(t)·mean (output − (a·x0 + b·eps))²

The parametrization defines a and b. With w = 1 this is DDPM's simple loss under `Eps` (Ho et al.
2020, arXiv:2006.11239), the loss of EDM under `EDM` (Karras et al. 2022, arXiv:2206.00364) and that
of flow matching under `Velocity` (Lipman et al. 2022, arXiv:2210.02747).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.couplings import Coupling, Independent
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.loss_weights import Learned, Uncertainty, Unweighted, Weight
from fewstep.losses import squared_error
from fewstep.methods.base import Loss, Method, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.plugins import name_of
from fewstep.ranges import Probability
from fewstep.sampling import Step, Transfer
from fewstep.tables import check_fields
from fewstep.times import Density, Grid, Uniform, UniformGrid


@dataclass(frozen=True)
class DenoiseConfig:
    """Settings of `Denoise`."""

    density: Density = field(default_factory=Uniform)
    """Distribution of the training times: `uniform`, or `lognormal` with `mean` and `std` of
    ln(sigma/alpha)."""
    weight: Weight = field(default_factory=Unweighted)
    """Weight of the squared error: `none` is 1 on the error of the raw output; `snr` is the SNR and
    `min-snr` is min(SNR, gamma) on the error of x0; `p2` is (k + SNR)^(−gamma) on that of eps;
    `learned` divides the raw error by its expectation at each level."""
    coupling: Coupling = field(default_factory=Independent)
    """Which noise is added to which image: `independent`, `minibatch-ot` (the nearest in a batch)
    or `semidiscrete-ot` (optimal transport to the whole set), for straighter paths."""
    condition_dropout: Probability = 0.1
    """Fraction of rows, 0 to below 1, trained without their class or prompt, for classifier-free
    guidance."""
    sampler: Step = field(default_factory=Transfer)
    """Sampler of the trained network, one of `fewstep list samplers`: `transfer` (Euler, or DDIM),
    `heun` (2N − 1 network calls in N steps, published for EDM), `unipc`, `ancestral` (DDPM's) …"""
    grid: Grid = field(default_factory=UniformGrid)
    """Times at which the trained network is sampled, one of `fewstep list grids`: `uniform`,
    `karras`, `log-snr` …"""

    def __post_init__(self) -> None:
        check_fields(self, "method")
        if self.sampler.own_grid:
            raise InputError(
                f"method.sampler is {name_of('sampler', type(self.sampler))}, which samples only "
                "networks of its own kind: choose another, such as transfer"
            )
        if not isinstance(self.coupling, Independent) and not self.sampler.deterministic:
            raise InputError(
                f"method.coupling is {name_of('coupling', type(self.coupling))}, which only the "
                f"paths without new noise follow, but method.sampler is "
                f"{name_of('sampler', type(self.sampler))}: choose transfer, heun, multistep or "
                "unipc"
            )


class Denoise(Method[DenoiseConfig]):
    """Train a denoiser on images with added noise."""

    reads = frozenset({"images"})
    needs_teacher = False
    uses_first_image = False
    trains_at_all_times = True
    trains_velocity = True

    def __init__(self, config: DenoiseConfig, task: Task) -> None:
        super().__init__(config, task)
        self.uncertainty = Uncertainty() if isinstance(config.weight, Learned) else None

    @property
    def players(self) -> Mapping[str, nn.Module]:
        learned = {} if self.uncertainty is None else {"uncertainty": self.uncertainty}
        return {"student": self.student, **learned}

    @property
    def coupling(self) -> Coupling | None:
        coupling = self.config.coupling
        return None if isinstance(coupling, Independent) else coupling

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)
        if self.uncertainty is not None:
            yield Turn("uncertainty", self.uncertainty_loss)

    def student_loss(self, batch: Batch) -> Loss:
        x0, cond = batch.images.x0, batch.images.cond
        t = self.config.density.times(batch.rand(), self.student)
        eps = batch.randn_like(x0) if self.coupling is None else batch.coupled_noise()
        if cond is not None and self.config.condition_dropout > 0:
            cond = cond.drop(batch.rand() < self.config.condition_dropout)
        prediction = self.student(self.student.process.add_noise(x0, eps, t), t, cond=cond)
        error = squared_error(prediction.output, prediction.target(x0, eps))
        at = prediction.coefficients
        if self.uncertainty is not None:
            level = at.log_ratio.flatten()
            batch.carry |= {"error": error.detach(), "level": level}
            weighted = error * torch.exp(-self.uncertainty(level))
            return Loss(weighted.mean(), {"error": error.mean()})
        weight = self.config.weight(at)
        weight = weight.flatten() if isinstance(weight, Tensor) else weight
        return Loss((weight * error).mean())

    def uncertainty_loss(self, batch: Batch) -> Loss:
        """The loss of `Uncertainty` on the errors of the student's turn, which it then weighs."""
        assert self.uncertainty is not None
        return Loss(self.uncertainty.loss(batch.carry["error"], batch.carry["level"]).mean())

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=self.config.grid, step=self.config.sampler)
