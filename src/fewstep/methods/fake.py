"""The fake score, which distribution matching trains beside the student on the student's images.

Its denoising tells the score of what the student makes; an adversarial head on its activations may
tell these images from real ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.generator import Subject
from fewstep.losses import square_error
from fewstep.methods.base import Batch


@dataclass(frozen=True)
class AdversarialConfig:
    """The adversarial turn; it reads real images."""

    weight: float = 0.0
    """Of the student's adversarial loss; 0: no head at all, and no real images are read."""
    head_weight: float = 0.01
    """Of the head's own loss, beside the fake score's."""
    layers: Literal["bottleneck", "all"] = "bottleneck"
    """Which of the fake score's activations the head sees."""
    width: int = 64
    """Hidden channels of the head."""


class Head(nn.Module):
    """One logit a row, high for real images: the mean over layers and places of a small network."""

    def __init__(self, score: Denoiser, subject: Subject, config: AdversarialConfig) -> None:
        super().__init__()
        self.all = config.layers == "all"
        device = next(score.parameters()).device
        with torch.no_grad():
            seen = self.chosen(score.features(torch.zeros(1, *subject.shape, device=device), 0.5))
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


class Fake(nn.Module):
    """The player `fake`: a score of the student's images, and a head where one is asked for."""

    def __init__(self, score: Denoiser, subject: Subject, config: AdversarialConfig) -> None:
        super().__init__()
        self.score = score
        self.head = Head(score, subject, config) if config.weight else None

    def denoising(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """Rows of the score's loss at the student's images `x`, unweighted on the raw output.

        That is the weight SNR for an eps network and SNR + 1/sigma_data² for EDM's, as published.
        """
        said = self.score(self.score.process.noised(x, eps, t), t, cond=cond)
        a, b = said.parametrization.row(said.alpha, said.sigma)
        return square_error(said.output, a * x + b * eps)

    def realness(self, x: Tensor, eps: Tensor, t: Tensor, cond: Condition | None) -> Tensor:
        """The head's logits (b,) of `x` noised to `t`."""
        assert self.head
        x_t = self.score.process.noised(x, eps, t)
        return self.head(self.score.features(x_t, t, cond=cond))


def fooling(fake: Tensor) -> Tensor:
    """The student's non-saturating loss, by row, from the logits of its images."""
    return functional.softplus(-fake)


def telling(fake: Tensor, real: Tensor) -> Tensor:
    """The head's loss, by row, from the logits of the student's images and of real ones."""
    return functional.softplus(fake) + functional.softplus(-real)


def simulated(
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
            x_t = student.process.noised(x0, batch.randn_like(x0), s)
    return student(x_t, times[last], cond=cond).x0
