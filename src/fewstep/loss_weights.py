"""Weights of the denoising loss, one for each noise level.

Papers give them for the error of x0 or eps. The network's error is that of its raw output, of which
x0 and eps are affine functions: their errors are the output's times a factor of the noise level.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep.coefficients import Coefficients
from fewstep.ranges import Positive
from fewstep.tables import check_fields


@dataclass(frozen=True)
class Weight(ABC):
    """Base class of weights of the squared error."""

    noun: ClassVar[str] = "weight"

    @abstractmethod
    def __call__(self, at: Coefficients) -> Tensor | float:
        """Weights (b, 1, ...) of the squared error of the raw output, or one for all rows.

        `at` are the coefficients at the times of the rows.
        """


@dataclass(frozen=True)
class Unweighted(Weight):
    """The squared error of the raw output: the simple loss of DDPM, and those of EDM and flows."""

    def __call__(self, at: Coefficients) -> float:
        return 1.0


@dataclass(frozen=True)
class Snr(Weight):
    """The signal-to-noise ratio (alpha/sigma)² as the weight of the error of x0: the eps error."""

    def __call__(self, at: Coefficients) -> Tensor:
        return at.eps[1].square()


@dataclass(frozen=True)
class MinSnr(Weight):
    """min(SNR, gamma) as the weight of the error of x0.  Hang et al. 2023, arXiv:2303.09556."""

    gamma: Positive = 5.0
    """Largest weight; published: 5."""

    def __post_init__(self) -> None:
        check_fields(self, "min-snr")

    def __call__(self, at: Coefficients) -> Tensor:
        return snr(at).clamp(max=self.gamma) * at.x0[1].square()


@dataclass(frozen=True)
class P2(Weight):
    """(k + SNR)^(−gamma) as the weight of the error of eps, which favours noisy levels.

    Choi et al. 2022, arXiv:2204.00227. Under `Eps` it multiplies the simple loss of DDPM.
    """

    k: Positive = 1.0
    """Bounds the weight where there is almost no signal; published: 1."""
    gamma: Positive = 1.0
    """Strength; published: 1, and 0.5 for some data sets."""

    def __post_init__(self) -> None:
        check_fields(self, "p2")

    def __call__(self, at: Coefficients) -> Tensor:
        ratio = snr(at)  # the error of eps is that of x0 times the SNR
        return (self.k + ratio) ** -self.gamma * ratio * at.x0[1].square()


@dataclass(frozen=True)
class Learned(Weight):
    """The error of the raw output, divided at each level by what the network's error is there.

    A small network u(level) is trained along with the loss error/exp(u) + u, whose minimum is
    u = ln(expected error). So all levels contribute alike. Karras et al. 2024, arXiv:2312.02696,
    section B.2 (eq. 15).
    """

    def __call__(self, at: Coefficients) -> Tensor | float:
        return 1.0


def snr(at: Coefficients) -> Tensor:
    """(alpha/sigma)²; without noise, a large number in place of infinity."""
    return (at.alpha / at.sigma.clamp(min=1e-6)).square()


class Uncertainty(nn.Module):
    """u(level): the logarithm of the expected error at a noise level, 0 before training.

    It is a linear layer on cosines of √r/(1 + √r) with r = sigma/alpha, which maps all levels to
    0 … 1.
    """

    def __init__(self, features: int = 32) -> None:
        super().__init__()
        self.layer = nn.Linear(features, 1)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, log_ratio: Tensor) -> Tensor:
        """Map ln(sigma/alpha) (b,), which may be infinite, to u (b,)."""
        k = torch.arange(1, self.layer.in_features + 1, device=log_ratio.device)
        angle = torch.pi * torch.sigmoid(0.5 * log_ratio)[:, None] * k
        return self.layer(2**0.5 * torch.cos(angle)).squeeze(1)

    def loss(self, error: Tensor, log_ratio: Tensor) -> Tensor:
        """error/exp(u) + u (b,), which is least in expectation at u = ln E[error]."""
        u = self(log_ratio)
        return error * torch.exp(-u) + u
