"""The fake score: a second denoiser that distribution matching trains on the student's images.

Its predictions give the score of the distribution that the student generates. A discriminator head
on its activations can classify images as generated or real. This module also has the base class of
DMD and SiD.
"""

from abc import ABC
from collections.abc import Sequence
from copy import deepcopy
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator, SampleSpec
from fewstep.guidance import unguided
from fewstep.losses import squared_error
from fewstep.methods.adversarial import AdversarialConfig, Head
from fewstep.methods.base import Loss, Method, Task
from fewstep.methods.batch import Batch
from fewstep.methods.checks import grid_times
from fewstep.sampling import Renoise
from fewstep.times import Density, FixedGrid, Grid


class FakeScore(nn.Module):
    """The player `fake`: a denoiser of the student's images, with a head if adversarial.weight > 0.

    The denoiser starts as a copy of the teacher's network without guidance. It trains at times
    drawn from `density` and under the teacher's process, also if the student has another process.
    """

    def __init__(
        self, teacher: Denoiser, spec: SampleSpec, density: Density, adversarial: AdversarialConfig
    ) -> None:
        super().__init__()
        backbone = deepcopy(unguided(teacher.backbone))
        self.score = Denoiser(backbone, teacher.process, teacher.parametrization, span=teacher.span)
        self.density = density
        self.adversarial = adversarial
        self.head = Head(self.score, spec, adversarial) if adversarial.weight else None

    def loss(self, batch: Batch, x: Tensor, cond: Condition | None) -> Loss:
        """Denoising loss on the student's images `x`, plus the discriminator loss on `x` and real
        images, whose gradient also trains the denoiser."""
        denoising = self.denoising_loss(x, batch.randn_like(x), self.times(batch), cond).mean()
        if self.head is None:
            return Loss(denoising)
        images = batch.images
        both = None if cond is None or images.cond is None else cond.concat(images.cond)
        eps = torch.cat([batch.randn_like(x), batch.randn_like(x)])
        t = torch.cat([self.times(batch), self.times(batch)])
        fake, real = self.logits(torch.cat([x, images.x0]), eps, t, both).chunk(2)
        head_loss = (functional.softplus(fake) + functional.softplus(-real)).mean()
        accuracy = 0.5 * ((fake < 0).float().mean() + (real > 0).float().mean())
        numbers = {"denoising": denoising, "head_loss": head_loss, "head_accuracy": accuracy}
        return Loss(denoising + self.adversarial.head_weight * head_loss, numbers)

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
        return self.head(self.score.features(x_t, t, cond=cond))

    def generator_loss(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """Non-saturating adversarial loss (b,) of the student at its images `x`."""
        return functional.softplus(-self.logits(x, eps, t, cond))

    def times(self, batch: Batch) -> Tensor:
        """Random times (b,) from `density`."""
        return self.density.times(batch.rand(), self.score)


@runtime_checkable
class MatchingConfig(Protocol):
    """The settings that all distribution matching methods have in common."""

    @property
    def steps(self) -> int: ...
    @property
    def grid(self) -> Grid: ...
    @property
    def fake_density(self) -> Density: ...
    @property
    def adversarial(self) -> AdversarialConfig: ...


ConfigT = TypeVar("ConfigT", bound=MatchingConfig)


class DistributionMatching(Method[ConfigT], ABC):
    """Base class of methods that train a student and a fake score of its images."""

    teacher: Generator
    starts_from_noise = True

    def __init__(self, config: ConfigT, task: Task) -> None:
        super().__init__(config, task)
        self.fake = FakeScore(self.real, task.spec, config.fake_density, config.adversarial)
        self.times: list[float] = grid_times(config.grid, config.steps, task.student).tolist()

    @property
    def real(self) -> Denoiser:
        """The teacher's denoiser, with guidance if the recipe sets it."""
        return self.teacher.denoiser

    @property
    def players(self) -> dict[str, nn.Module]:
        return {"student": self.student, "fake": self.fake}

    def fake_loss(self, batch: Batch) -> Loss:
        """Loss of the fake score's turn; see `cached_images` for the images that it trains on."""
        return self.fake.loss(batch, *cached_images(self.student, self.times, batch))

    def generator(self) -> Generator:
        grid = FixedGrid((tuple(self.times),))
        return Generator(self.student, self.spec, grid=grid, step=Renoise())


def student_images(
    student: Denoiser, times: Sequence[float], batch: Batch
) -> tuple[Tensor, Condition | None]:
    """Generate images of random classes in the student's turn, and put a copy in `batch.carry`."""
    cond = batch.cond()
    x = rollout(student, times, batch, cond)
    batch.carry["x"] = x.detach()
    if cond is not None:
        batch.carry["label"] = cond.label
    return x, cond


def cached_images(
    student: Denoiser, times: Sequence[float], batch: Batch
) -> tuple[Tensor, Condition | None]:
    """The images of the student's turn in the same step; new ones if it had no turn yet."""
    if "x" not in batch.carry:
        with torch.no_grad():
            return student_images(student, times, batch)
    label = batch.carry.get("label")
    return batch.carry["x"], None if label is None else Condition(label)


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
