"""The Fréchet distance between two sets of features, from their mean and covariance."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fewstep.errors import InputError


class Moments:
    """Mean and covariance of features that arrive in batches, in float64 and on the CPU.

    Each batch is centred by itself and joined by the pairwise update (Chan, Golub & LeVeque 1979),
    so neither batch size nor order matters beyond float64 rounding, whatever the features' offset.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Float64[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)
        self.scatter: Float64[Tensor, "d d"] = torch.zeros(dim, dim, dtype=torch.float64)
        """Sum over rows of (row - mean)(row - mean)^T."""
        self._factor: Tensor | None = None

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Join a batch of at least one row."""
        rows = features.detach().cpu().double()
        mean = rows.mean(0)
        centred = rows - mean
        self._join(len(rows), mean, centred.T @ centred)

    def join(self, other: "Moments") -> None:
        """Join the rows that `other` has seen."""
        self._join(other.count, other.mean, other.scatter)

    def _join(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if n == 0:
            return
        count, shift = self.count + n, mean - self.mean
        self.scatter += scatter + torch.outer(shift, shift) * (self.count * n / count)
        self.mean = self.mean + shift * (n / count)
        self.count = count
        self._factor = None

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased estimate, over n - 1."""
        if self.count < 2:
            raise InputError(f"a Fréchet distance needs at least 2 images a set, not {self.count}")
        return self.scatter / (self.count - 1)

    @property
    def factor(self) -> Float64[Tensor, "d d"]:
        """F with F F^T = covariance, computed once; eigenvalues that are but rounding are zero."""
        factor = self._factor
        if factor is None:
            values, vectors = torch.linalg.eigh(self.covariance)
            rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
            factor = self._factor = vectors * values.where(values > rounding, 0).sqrt()
        return factor


def merged(several: Sequence[Moments]) -> Moments:
    """The moments of all rows together."""
    whole = Moments(several[0].mean.numel())
    for each in several:
        whole.join(each)
    return whole


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2).

    The squared 2-Wasserstein distance of two Gaussians (Dowson & Landau 1982), called FID when the
    features are those of the standard Inception network (Heusel et al. 2017, arXiv:1706.08500).
    Covariances may be singular, as those of fewer images than features are.
    """
    # With S = F F^T, tr (S_a S_b)^1/2 is the sum of the singular values of F_a^T F_b. No root is
    # taken of a rounding error, which would put 1e-8 in place of 1e-16 for each null direction.
    overlap = torch.linalg.svdvals(a.factor.T @ b.factor).sum()
    return _distance(a, b, overlap)


def _nearly(a: Moments, b: Moments) -> float:
    """`frechet_distance` to about 1e-6, several times as fast for many a and one b."""
    squares = torch.linalg.eigvalsh(b.factor.T @ a.covariance @ b.factor)
    return _distance(a, b, squares.clamp(min=0).sqrt().sum())


def _distance(a: Moments, b: Moments, overlap: Tensor) -> float:
    traces = a.covariance.trace() + b.covariance.trace()
    return max(((a.mean - b.mean).square().sum() + traces - 2 * overlap).item(), 0.0)


STUDENT = {20: 2.093, 8: 2.365, 4: 3.182}
"""Numbers of parts, and of each Student's t at 97.5 % with one degree of freedom fewer."""


class Parts:
    """Moments of `total` rows that arrive in order, kept in equal contiguous parts.

    The parts cost what their covariances cost, whatever the number of rows, and give the spread of
    a distance and its course as rows are added. Contiguous, so that classes in turn are even.
    """

    def __init__(self, dim: int, total: int) -> None:
        # a covariance of 2,048 features is 32 MiB
        most = min(20 if dim <= 512 else 8, total // 2)
        count = next((n for n in STUDENT if n <= most), 1)
        self.total = total
        self.seen = 0
        self.parts = [Moments(dim) for _ in range(count)]

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Join the rows that come next."""
        while len(features):
            part = self.seen * len(self.parts) // self.total
            end = -(-(part + 1) * self.total // len(self.parts))  # where the next part begins
            mine, features = features[: end - self.seen], features[end - self.seen :]
            self.parts[part].update(mine)
            self.seen += len(mine)


class FrechetEstimate(NamedTuple):
    """A distance at this number of samples, and what the samples tell of its uncertainty."""

    value: float
    low: float | None
    """The 95 % interval: where other samples of the same number would put it. None: too few."""
    high: float | None
    infinite: float | None
    """Extrapolated to infinitely many samples; None where they are too few for their features."""


def frechet_estimate(
    parts: Parts, reference: Moments, *, replicates: int | None = None, seed: int = 0
) -> FrechetEstimate:
    """The distance of all parts together, with a bootstrap interval and its limit.

    The interval: parts are drawn with replacement `replicates` times (a block bootstrap, by default
    40 times, or 16 beyond 512 features, where each takes seconds); of the distances only the spread
    is used, since each draw repeats rows and lies too high. The limit:
    Chong & Forsyth 2020 (arXiv:1911.07023): the distance falls as c/n, and a line through the
    distances of disjoint quarters, halves and the whole meets 1/n = 0 there.
    """
    value = frechet_distance(merged(parts.parts), reference)
    if len(parts.parts) == 1:
        return FrechetEstimate(value, None, None, None)
    draws = replicates or (40 if len(reference.mean) <= 512 else 16)
    spread = _spread(parts.parts, reference, draws, seed)
    enough = parts.total >= 8 * len(reference.mean)  # a quarter has two rows for each feature
    limit = _limit(parts.parts, reference, value) if enough else None
    return FrechetEstimate(value, max(value - spread, 0.0), value + spread, limit)


def _spread(parts: Sequence[Moments], reference: Moments, replicates: int, seed: int) -> float:
    """Half the width of the 95 % interval."""
    count = len(parts)
    draw = np.random.default_rng(seed)
    values = [
        _nearly(merged([parts[i] for i in draw.integers(count, size=count)]), reference)
        for _ in range(replicates)
    ]
    # few parts vary less among themselves than their population does, and their own variance is
    # uncertain
    return float(np.std(values, ddof=1) * (count / (count - 1)) ** 0.5 * STUDENT[count])


def _limit(parts: Sequence[Moments], reference: Moments, value: float) -> float:
    points: list[tuple[float, float]] = [(1 / sum(p.count for p in parts), value)]
    for share in (2, 4):
        size = len(parts) // share
        for first in range(0, len(parts), size):
            some = merged(parts[first : first + size])
            points.append((1 / some.count, _nearly(some, reference)))
    x, y = np.array(points).T
    # a distance varies as 1/n: polyfit squares the weights that it is given
    return float(np.polyfit(x, y, 1, w=x**-0.5)[1])
