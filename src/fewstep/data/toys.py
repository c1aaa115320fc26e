"""Toy sets of points: Gaussian mixtures, whose noisy densities have closed forms, and two others.

With x0 ~ Σ_k w_k N(m_k, std²) and x_t = alpha·x0 + sigma·eps, each component of x_t is
N(alpha·m_k, v) with v = alpha²·std² + sigma², hence (Bishop 2006, sections 2.3.3 and 9.2):

    p_k(x_t)    = w_k N(x_t; alpha·m_k, v) / Σ_j w_j N(x_t; alpha·m_j, v)
    E[x0 | x_t] = Σ_k p_k (m_k + alpha·std²/v · (x_t − alpha·m_k))
    score(x_t)  = Σ_k p_k (alpha·m_k − x_t) / v
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Points = tuple[Float[Tensor, "n d"], Int64[Tensor, " n"]]


class _Components(NamedTuple):
    logits: Float[Tensor, "b k"]  # ln w_k N(x_t; alpha m_k, v), without the common normaliser
    offsets: Float[Tensor, "b k d"]  # x_t − alpha m_k
    alpha: Float[Tensor, "#b 1"]
    variance: Float[Tensor, "#b 1"]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The density Σ_k w_k N(means_k, std²), with std > 0.

    `weights` are positive and may have any sum. In the methods, `alpha` and `sigma` are a number,
    or one per row, (b,) or (b, 1); they must not both be 0.
    """

    means: Float[Tensor, "k d"]
    std: float
    weights: Float[Tensor, " k"]

    def points(self, n: int, seed: int) -> Points:
        """Draw `n` points; returns them and the component of each."""
        generator = torch.Generator().manual_seed(seed)
        labels = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        eps = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[labels] + self.std * eps, labels

    def denoise(
        self, x_t: Float[Tensor, "b d"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "b d"]:
        """E[x0 | x_t], in the dtype of `x_t`."""
        components = self._components(x_t, alpha, sigma)
        posterior = components.logits.softmax(1).unsqueeze(2)
        gain = components.alpha * self.std**2 / components.variance
        return (posterior * (self.means.to(x_t) + gain.unsqueeze(2) * components.offsets)).sum(1)

    def score(
        self, x_t: Float[Tensor, "b d"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "b d"]:
        """Gradient of `log_density` with respect to `x_t`."""
        components = self._components(x_t, alpha, sigma)
        posterior = components.logits.softmax(1).unsqueeze(2)
        return -(posterior * components.offsets).sum(1) / components.variance

    def log_density(
        self, x_t: Float[Tensor, "b d"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, " b"]:
        """ln p(x_t), the log-density of noisy points."""
        components = self._components(x_t, alpha, sigma)
        normaliser = x_t.shape[1] / 2 * (2 * math.pi * components.variance).log().squeeze(1)
        return components.logits.logsumexp(1) - normaliser

    def _components(
        self, x_t: Float[Tensor, "b d"], alpha: Tensor | float, sigma: Tensor | float
    ) -> _Components:
        alpha, sigma = _column(alpha, x_t), _column(sigma, x_t)
        variance = alpha.square() * self.std**2 + sigma.square()
        offsets = x_t.unsqueeze(1) - alpha.unsqueeze(2) * self.means.to(x_t)
        weights = (self.weights / self.weights.sum()).to(x_t)
        logits = weights.log() - offsets.square().sum(2) / (2 * variance)
        return _Components(logits, offsets, alpha, variance)


def _column(value: Tensor | float, like: Tensor) -> Float[Tensor, "#b 1"]:
    # (b, 1), because (b,) would broadcast along the wrong dimension of (b, d) if b = d
    return torch.as_tensor(value, dtype=like.dtype, device=like.device).reshape(-1, 1)


def eight_gaussians() -> GaussianMixture:
    """Eight Gaussians of std 0.08 on a circle of radius 0.8; each coordinate has std 0.571."""
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    means = 0.8 * torch.stack([angle.cos(), angle.sin()], dim=1)
    return GaussianMixture(means.float(), 0.08, torch.full((8,), 1 / 8))


def two_moons(n: int, seed: int) -> Points:
    """Two half circles of radius 2/3 with noise of std 0.03; labels 0 and 1 number the circles."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], dim=1)
    # the lower half circle is the upper one, rotated by 180° about the origin
    circle = 2 / 3 * upper * (1 - 2 * labels.unsqueeze(1))
    return circle + 0.03 * torch.randn(n, 2, generator=generator), labels


def checkerboard(n: int, seed: int) -> Points:
    """Uniform points on the dark squares of a 4 x 4 board over [-1, 1)².

    The label is the number of the square, 0 … 7.

    Square 2·column + i is in the row 2·i + (column mod 2), counted from below.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(8, (n,), generator=generator)
    column = labels // 2
    row = 2 * (labels % 2) + column % 2
    corner = torch.stack([column, row], dim=1)
    return (corner + torch.rand(n, 2, generator=generator)) / 2 - 1, labels
