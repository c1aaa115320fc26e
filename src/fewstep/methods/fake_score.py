"""The fake score: a second denoiser that distribution matching trains on the student's images.

Its predictions give the score of the distribution that the student generates. A discriminator head
on its activations, or on the teacher's, can classify images as generated or real.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones import set_dropout
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.guidance import unguided
from fewstep.losses import squared_error
from fewstep.methods.adversarial import R1_NOISE, AdversarialConfig, Head
from fewstep.methods.base import Loss
from fewstep.methods.batch import Batch
from fewstep.methods.schedule import check_steps
from fewstep.ranges import NonNegative, ProbabilityBelowOne
from fewstep.sample_spec import SampleSpec
from fewstep.times import Density, Uniform


@dataclass(frozen=True)
class FakeConfig:
    """Settings of the fake score, beside those of its optimiser in [fit.players.fake]."""

    density: Density = field(default_factory=Uniform)
    """Distribution of the times at which the fake score and its head are trained. Published for EDM
    networks: `karras` in DMD, `lognormal` as for EDM in SiD."""
    dropout: ProbabilityBelowOne | None = None
    """Dropout of the fake score, by default that of the teacher's network. Published: 0 in DMD,
    0.13 in SiD."""
    warmup: NonNegative = 0.0
    """Training steps before the first update of the student, while only the fake score trains;
    below 1, a share of the training. Published in SiDA: 100,000 images."""

    def __post_init__(self) -> None:
        check_steps(self.warmup, "method.fake.warmup")


class FakeScore(nn.Module):
    """The player `fake`: a denoiser of the student's images, with a head if adversarial.weight > 0.

    The denoiser starts as a copy of the teacher's network without guidance. It trains at times
    drawn from `config.density` and under the teacher's process, also if the student has another
    process.
    """

    def __init__(
        self,
        teacher: Denoiser,
        spec: SampleSpec,
        config: FakeConfig,
        adversarial: AdversarialConfig,
    ) -> None:
        super().__init__()
        backbone = deepcopy(unguided(teacher.backbone))
        if config.dropout is not None:
            set_dropout(backbone, config.dropout)
        self.score = Denoiser(backbone, teacher.process, teacher.parametrization, span=teacher.span)
        self.density = config.density
        self.adversarial = adversarial
        self.head = Head(self.score, spec, adversarial) if adversarial.weight else None
        # a module in a tuple is no submodule: this player neither trains nor saves the teacher
        self._teacher = (teacher,)

    @property
    def critic(self) -> Denoiser:
        """The network whose activations are the head's input."""
        return self._teacher[0] if self.adversarial.features == "teacher" else self.score

    def loss(self, batch: Batch, x: Tensor, cond: Condition | None) -> Loss:
        """Denoising loss on the student's images `x`, plus the discriminator loss on `x` and real
        images, whose gradient also trains the denoiser unless `features` are the teacher's. With
        `data.augment`, all of these images are augmented."""
        x, cond = batch.augment(x, cond)
        denoising = self.denoising_loss(x, batch.randn_like(x), self.times(batch), cond).mean()
        if self.head is None:
            return Loss(denoising)
        value, numbers = self.discriminator_loss(batch, x, cond)
        value = denoising + self.adversarial.head_weight * value
        return Loss(value, {"denoising": denoising, **numbers})

    def discriminator_loss(self, batch: Batch, x: Tensor, cond: Condition | None) -> Loss:
        """Loss of the head on the student's images `x` and real ones, and its accuracy."""
        images, real_cond = batch.images, batch.images.cond
        if cond is None or real_cond is None:
            cond = real_cond = None
        fake_eps, eps = batch.randn_like(x), batch.randn_like(x)
        fake_t, t = self.times(batch), self.times(batch)
        fake = self.logits(x, fake_eps, fake_t, cond)
        with batch.same_dropout():
            real = self.logits(images.x0, eps, t, real_cond)
        value = (functional.softplus(fake) + functional.softplus(-real)).mean()
        accuracy = 0.5 * ((fake < 0).float().mean() + (real > 0).float().mean())
        numbers = {"head_loss": value, "head_accuracy": accuracy}
        if not self.adversarial.r1:
            return Loss(value, numbers)
        # the same eps, t and dropout: only the image differs
        near = images.x0 + R1_NOISE * batch.randn_like(x)
        with batch.same_dropout():
            moved = self.logits(near, eps, t, real_cond)
        numbers["r1"] = ((moved - real) / R1_NOISE).square().mean()
        return Loss(value + self.adversarial.r1 * numbers["r1"], numbers)

    def denoising_loss(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """Denoising loss (b,) at images `x`: the squared error of the raw output, with weight 1.

        This equals a weight of SNR on the x0 error for an eps network, and of SNR + 1/sigma_data²
        for EDM, as published.
        """
        prediction = self.score(self.score.process.add_noise(x, eps, t), t, cond=cond)
        return squared_error(prediction.output, prediction.target(x, eps))

    def logits(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """Logits (b,) of the head at images `x` with noise `eps` added at time `t`."""
        assert self.head
        x_t = self.score.process.add_noise(x, eps, t)
        return self.head(self.critic.features(x_t, t, cond=cond))

    def generator_loss(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """Non-saturating adversarial loss (b,) of the student at its images `x`."""
        return functional.softplus(-self.logits(x, eps, t, cond))

    def times(self, batch: Batch) -> Tensor:
        """Random times (b,) from `density`."""
        return self.density.times(batch.rand(), self.score)


def student_images(
    student: Denoiser, times: Sequence[float], batch: Batch
) -> tuple[Tensor, Condition | None]:
    """Generate images in the student's turn, and put a copy in `batch.carry`.

    With dropout there is no copy: the fake score trains on images as they are sampled, without
    dropout, as in SiD.
    """
    cond = batch.cond()
    x = rollout(student, times, batch, cond)
    if any(isinstance(m, nn.Dropout) and m.training and m.p > 0 for m in student.modules()):
        return x, cond
    batch.carry["x"] = x.detach()
    batch.carry |= cond.tensors() if cond is not None else {}
    return x, cond


def cached_images(
    student: Denoiser, times: Sequence[float], batch: Batch
) -> tuple[Tensor, Condition | None]:
    """The images of the student's turn in the same step; new ones if it left none."""
    if "x" not in batch.carry:
        with torch.no_grad():
            return student_images(student, times, batch)
    return batch.carry["x"], Condition.from_tensors(batch.carry)


def rollout(
    student: Denoiser, times: Sequence[float], batch: Batch, cond: Condition | None
) -> Tensor:
    """Sample images (b, ...) as at inference, with gradient through the last step only.

    The number of steps is random, from 1 to all of `times`, and the same for the whole batch. The
    earlier steps run without gradient; after each, fresh noise is added to its image. Yin et al.
    2024, arXiv:2405.14867, section 4.5.
    """
    last = int(batch.shared_rand() * len(times))
    noise = batch.noise()
    x_t = student.process.start(noise, times[0])
    with torch.no_grad():
        for t, s in zip(times[:last], times[1:], strict=False):
            x0 = student(x_t, t, cond=cond).x0
            x_t = student.process.add_noise(x0, batch.randn_like(x0), s)
    return student(x_t, times[last], cond=cond).x0


def row_scale(x: Tensor, x0: Tensor) -> Tensor:
    """1/mean|x − x0| per row, of shape (b, 1, ...): gives all noise levels a similar weight."""
    error = (x - x0).detach().abs().flatten(1).mean(1)
    # the floor is below any real error, and avoids 0/0 = nan
    return (1 / error.clamp(min=1e-6)).reshape(-1, *[1] * (x.ndim - 1))
