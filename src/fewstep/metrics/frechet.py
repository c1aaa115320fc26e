"""The Fréchet distance between two sets of features, from their mean and covariance."""

from bisect import bisect_right
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
    """Moments of `total` rows that arrive in order, kept in contiguous parts as equal as can be.

    The parts cost what their covariances cost, whatever the number of rows, and give the spread of
    a distance and its course as rows are added. Each holds whole cycles of `cycle` rows: where
    classes are asked for in turn, all parts show all of them alike.
    """

    def __init__(self, dim: int, total: int, *, cycle: int = 1) -> None:
        # a covariance of 2,048 features is 32 MiB
        most = min(20 if dim <= 512 else 8, total // 2, total // cycle)
        count = next((n for n in STUDENT if n <= most), 1)
        self.total = total
        self.seen = 0
        self.parts = [Moments(dim) for _ in range(count)]
        self._ends = [cycle * (part * (total // cycle) // count) for part in range(1, count)]
        self._ends.append(total)

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Join the rows that come next."""
        while len(features):
            part = bisect_right(self._ends, self.seen)
            room = self._ends[part] - self.seen
            self.parts[part].update(features[:room])
            self.seen += min(room, len(features))
            features = features[room:]


class FrechetEstimate(NamedTuple):
    """A distance at this number of samples, and what the samples tell of its uncertainty."""

    value: float
    low: float | None
    """The 95 % interval: where other samples of the same number would put it. None: too few."""
    high: float | None
    infinite: float | None
    """Extrapolated to infinitely many samples; None where they are too few for their features."""


def frechet_estimate(
    parts: Parts, reference: Moments, *, draws: int = 1000, seed: int = 0
) -> FrechetEstimate:
    """The distance of all parts together, with a bootstrap interval and its limit.

    The interval is `_spread` to both sides. The limit: Chong & Forsyth 2020 (arXiv:1911.07023): the
    distance falls as c/n, and a line through the distances of disjoint quarters, halves and the
    whole meets 1/n = 0 there.
    """
    whole, dim = merged(parts.parts), len(reference.mean)
    value = frechet_distance(whole, reference)
    if len(parts.parts) == 1 or parts.total <= dim:
        return FrechetEstimate(value, None, None, None)
    spread = _spread(parts.parts, whole, reference, draws, seed)
    # a quarter must have two rows for each feature
    limit = _limit(parts.parts, reference, value) if parts.total >= 8 * dim else None
    return FrechetEstimate(value, max(value - spread, 0.0), value + spread, limit)


def _spread(
    parts: Sequence[Moments], whole: Moments, reference: Moments, draws: int, seed: int
) -> float:
    """Half the width of the 95 % interval, from a bootstrap of the parts' influences.

    A part moves the distance, to first order, by its share of

        2 (mu - mu_r).(mu_p - mu) + tr (I - A)(S_p - S),   A = F (F^T S F)^-1/2 F^T,   S_r = F F^T,

    the derivative in mean and covariance. Drawing whole parts again and measuring each draw's own
    distance would be too wide: repeated rows shrink its covariance's rank, and that bias varies
    from draw to draw more than the distance does.
    """
    count = len(parts)
    values, vectors = torch.linalg.eigh(reference.factor.T @ whole.covariance @ reference.factor)
    rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverse = values.where(values > rounding, torch.inf).rsqrt()
    root = reference.factor @ vectors * inverse.sqrt()
    slope = torch.eye(len(values), dtype=values.dtype) - root @ root.T
    shift = whole.mean - reference.mean

    def influence(part: Moments) -> float:
        away = part.mean - whole.mean
        second = part.scatter / part.count + torch.outer(away, away)
        return float(2 * shift @ away + (slope * second).sum()) * count * part.count / whole.count

    moved = np.array([influence(part) for part in parts])
    drawn = np.random.default_rng(seed).choice(moved, (draws, count)).mean(1)
    # few parts vary less among themselves than their population does, and their own variance is
    # uncertain
    return float(drawn.std() * (count / (count - 1)) ** 0.5 * STUDENT[count])


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
