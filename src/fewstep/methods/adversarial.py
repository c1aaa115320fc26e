"""Adversarial loss: a discriminator head on the activations of the fake score.

DMD2, Yin et al. 2024, arXiv:2405.14867; SiDA, Zhou et al. 2024, arXiv:2410.14919.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.denoiser import Denoiser
from fewstep.methods.schedule import check_steps
from fewstep.ranges import Channels, NonNegative
from fewstep.sample_spec import SampleSpec
from fewstep.tables import check_fields

R1_NOISE = 0.1
"""Standard deviation of the noise that estimates the squared gradient of the logit. A smaller one
drowns in the rounding of bfloat16."""


@dataclass(frozen=True)
class AdversarialConfig:
    """Settings of the adversarial loss, which compares the student's images with real ones."""

    weight: NonNegative = 0.0
    """Weight of the adversarial loss in the student's loss. At 0 there is no head, and no real
    images are read."""
    head_weight: NonNegative = 0.01
    """Weight of the discriminator loss in the fake score's loss."""
    start: NonNegative = 0.0
    """Training steps before the adversarial loss is in the student's loss, while the head trains
    already; below 1, a share of the training."""
    r1: NonNegative = 0.0
    """Weight of the squared gradient of the logit at real images, in the discriminator loss. It is
    estimated by finite differences (Lin et al. 2025, arXiv:2501.08316)."""
    features: Literal["fake", "teacher"] = "fake"
    """Network whose activations the head takes as input: the `fake` score, which then trains with
    the head, as in DMD2 and SiDA, or the `teacher`, which does not change, as in FastGen."""
    layers: Literal["bottleneck", "all"] = "bottleneck"
    """Activations that the head takes as input: those of the `bottleneck` (the last layer), or of
    `all` layers."""
    width: Channels = 64
    """Hidden channels of the head."""

    def __post_init__(self) -> None:
        check_steps(self.start, "method.adversarial.start")
        check_fields(self, "method.adversarial")


class Head(nn.Module):
    """Discriminator head: maps activations to one logit per row, high for real images.

    Each layer has a small network of its own; the logit is the mean of their outputs over layers
    and positions. The initial weights are drawn from seed 0.
    """

    def __init__(self, score: Denoiser, spec: SampleSpec, config: AdversarialConfig) -> None:
        super().__init__()
        self.all = config.layers == "all"
        device = next(score.parameters()).device
        with torch.no_grad():
            layers = self.select(score.features(torch.zeros(1, *spec.shape, device=device), 0.5))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.branches = nn.ModuleList(_branch(layer, config.width) for layer in layers)
        self.to(device)

    def select(self, features: list[Tensor]) -> list[Tensor]:
        """The layers of `features` that are the head's input."""
        return features if self.all else features[-1:]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Map `Denoiser.features` to logits (b,)."""
        pairs = zip(self.branches, self.select(features), strict=True)
        return torch.stack([b(layer).flatten(1).mean(1) for b, layer in pairs]).mean(0)


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
