"""The fake score, which distribution matching trains beside the student on the student's images.

Its denoising tells the score of what the student makes; an adversarial head on its activations may
tell these images from real ones. A `DistributionMatching` method holds one `FakeScore`, and its
student's images come from `student_images`.
"""

import math
from abc import ABC
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, SampleSpec
from fewstep.guidance import unguided
from fewstep.losses import squared_error
from fewstep.methods.base import Batch, Loss, Method, Task
from fewstep.sampling import Renoise
from fewstep.times import Density, FixedGrid, Grid


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial part; it reads real images."""

    weight: float = 0.0
    """Of the student's adversarial loss; 0: no head at all, and no real images are read."""
    head_weight: float = 0.01
    """Of the head's own loss, beside the fake score's."""
    layers: Literal["bottleneck", "all"] = "bottleneck"
    """Which of the fake score's activations the head sees."""
    width: int = 64
    """Hidden channels of the head."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.head_weight < 0:
            raise InputError("adversarial.weight and adversarial.head_weight must be 0 or more")


class Head(nn.Module):
    """One logit a row, high for real images: the mean over layers and places of a small network."""

    def __init__(self, score: Denoiser, spec: SampleSpec, config: AdversarialConfig) -> None:
        super().__init__()
        self.all = config.layers == "all"
        device = next(score.parameters()).device
        with torch.no_grad():
            seen = self.chosen(score.features(torch.zeros(1, *spec.shape, device=device), 0.5))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.branches = nn.ModuleList(_branch(layer, config.width) for layer in seen)
        self.to(device)

    def chosen(self, features: list[Tensor]) -> list[Tensor]:
        """The layers that it sees."""
        return features if self.all else features[-1:]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits (b,) of a denoiser's `features`."""
        seen = zip(self.branches, self.chosen(features), strict=True)
        return torch.stack([b(layer).flatten(1).mean(1) for b, layer in seen]).mean(0)


def _branch(layer: Tensor, width: int) -> nn.Module:
    if layer.ndim == 2:
        return nn.Sequential(
            nn.Linear(layer.shape[1], width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 1),
        )  # fmt: skip
    groups = math.gcd(width, 32)
    return nn.Sequential(
        nn.Conv2d(layer.shape[1], width, 3, padding=1), nn.GroupNorm(groups, width), nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(groups, width), nn.SiLU(),
        nn.Conv2d(width, 1, 1),
    )  # fmt: skip


class FakeScore(nn.Module):
    """The player `fake`: a score of the student's images, and a head where one is asked for.

    It starts as a copy of the teacher's network without its guidance, is trained at times of
    `density`, and noises under the teacher's process, whatever the student's own is.
    """

    def __init__(
        self, teacher: Denoiser, spec: SampleSpec, density: Density, adversarial: AdversarialConfig
    ) -> None:
        super().__init__()
        plain = deepcopy(unguided(teacher.backbone))
        self.score = Denoiser(plain, teacher.process, teacher.parametrization)
        self.density = density
        self.adversarial = adversarial
        self.head = Head(self.score, spec, adversarial) if adversarial.weight else None

    def loss(self, batch: Batch, x: Tensor, cond: Condition | None) -> Loss:
        """Its own turn's: denoise the student's images `x`; tell them from the batch's real ones.

        The head's gradient trains the score's activations too.
        """
        denoising = self.denoising(x, batch.randn_like(x), self.times(batch), cond).mean()
        if self.head is None:
            return Loss(denoising)
        images = batch.images
        both = None if cond is None or images.cond is None else cond.concat(images.cond)
        eps = torch.cat([batch.randn_like(x), batch.randn_like(x)])
        t = torch.cat([self.times(batch), self.times(batch)])
        fake, real = self.logits(torch.cat([x, images.x0]), eps, t, both).chunk(2)
        telling = (functional.softplus(fake) + functional.softplus(-real)).mean()
        told = 0.5 * ((fake < 0).float().mean() + (real > 0).float().mean())
        numbers = {"denoising": denoising, "telling": telling, "told": told}
        return Loss(denoising + self.adversarial.head_weight * telling, numbers)

    def denoising(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """Rows of the score's loss at the student's images `x`, unweighted on the raw output.

        That is the weight SNR for an eps network and SNR + 1/sigma_data² for EDM's, as published.
        """
        said = self.score(self.score.process.add_noise(x, eps, t), t, cond=cond)
        a, b = said.parametrization.row(said.alpha, said.sigma)
        return squared_error(said.output, a * x + b * eps)

    def logits(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """The head's logits (b,) of `x` noised to `t`."""
        assert self.head
        x_t = self.score.process.add_noise(x, eps, t)
        return self.head(self.score.features(x_t, t, cond=cond))

    def generator_loss(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """The student's adversarial loss by row, non-saturating, at images `x` noised to `t`."""
        return functional.softplus(-self.logits(x, eps, t, cond))

    def times(self, batch: Batch) -> Tensor:
        """A time of its density for each row."""
        return self.density.times(batch.rand(), self.score)


@runtime_checkable
class MatchingConfig(Protocol):
    """Settings that every distribution matching method has."""

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

    def __init__(self, config: ConfigT, task: Task) -> None:
        super().__init__(config, task)
        self.fake = FakeScore(self.real, task.spec, config.fake_density, config.adversarial)
        self.times: list[float] = config.grid(config.steps, task.student).tolist()

    @property
    def real(self) -> Denoiser:
        """The teacher's score, guided where the recipe says so."""
        return self.teacher.denoiser

    @property
    def players(self) -> dict[str, nn.Module]:
        return {"student": self.student, "fake": self.fake}

    def fake_loss(self, batch: Batch) -> Loss:
        """The fake's own turn, on the images that the student's turn left."""
        return self.fake.loss(batch, *cached_images(self.student, self.times, batch))

    def generator(self) -> Generator:
        grid = FixedGrid((tuple(self.times),))
        return Generator(self.student, self.spec, grid=grid, step=Renoise())


def student_images(
    student: Denoiser, times: Sequence[float], batch: Batch
) -> tuple[Tensor, Condition | None]:
    """The student's images for its own turn, of drawn classes; left in the batch for the fake's."""
    cond = batch.cond()
    x = rollout(student, times, batch, cond)
    batch.carry["x"] = x.detach()
    if cond is not None:
        batch.carry["label"] = cond.label
    return x, cond


def cached_images(
    student: Denoiser, times: Sequence[float], batch: Batch
) -> tuple[Tensor, Condition | None]:
    """The student's images for the fake's turn: those that its own turn left, else new ones."""
    if "x" not in batch.carry:
        with torch.no_grad():
            return student_images(student, times, batch)
    label = batch.carry.get("label")
    return batch.carry["x"], None if label is None else Condition(label)


def rollout(
    student: Denoiser, times: Sequence[float], batch: Batch, cond: Condition | None
) -> Tensor:
    """The student's images (b, ...), made as it will be sampled, with gradient at the last step.

    Which of its `times` is the last is drawn for the whole batch; steps before it run without
    gradient, each image noised afresh to the next time. Yin et al. 2024, arXiv:2405.14867, 4.5.
    """
    last = int(batch.shared_rand() * len(times))
    noise = batch.noise()
    _, sigma = student.process.at(times[0], like=noise)
    x_t = sigma * noise
    with torch.no_grad():
        for t, s in zip(times[:last], times[1:], strict=False):
            x0 = student(x_t, t, cond=cond).x0
            x_t = student.process.add_noise(x0, batch.randn_like(x0), s)
    return student(x_t, times[last], cond=cond).x0


def row_scale(x: Tensor, x0: Tensor) -> Tensor:
    """1/mean|x − x0| of each row, shaped to multiply it: levels of noise then weigh alike."""
    error = (x - x0).detach().abs().flatten(1).mean(1)
    # the floor is below any real error, and keeps 0 times its inverse finite
    return (1 / error.clamp(min=1e-6)).reshape(-1, *[1] * (x.ndim - 1))
