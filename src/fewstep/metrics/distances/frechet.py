"""The Fréchet distance between two sets of features, from their means and covariances."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fewstep.errors import InputError


class Moments:
    """Mean and covariance of features that arrive in batches, in float64 on the CPU.

    Each batch is centred and then combined by the pairwise update (Chan, Golub & LeVeque 1979).
    Batch size and order therefore change only the float64 rounding, even with a large mean.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Float64[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)
        self.scatter: Float64[Tensor, "d d"] = torch.zeros(dim, dim, dtype=torch.float64)
        """Sum over rows of (row - mean)(row - mean)^T."""
        self._factor: Tensor | None = None

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Add a batch of at least one row."""
        rows = features.detach().cpu().double()
        mean = rows.mean(0)
        centred = rows - mean
        self._add(len(rows), mean, centred.T @ centred)

    def add(self, other: "Moments") -> None:
        """Add the rows of `other`."""
        self._add(other.count, other.mean, other.scatter)

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if n == 0:
            return
        count, shift = self.count + n, mean - self.mean
        self.scatter += scatter + torch.outer(shift, shift) * (self.count * n / count)
        self.mean = self.mean + shift * (n / count)
        self.count = count
        self._factor = None

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased estimate of the covariance, with denominator n - 1.

        Raises: InputError for fewer than 2 rows.
        """
        if self.count < 2:
            raise InputError(f"a Fréchet distance needs at least 2 images a set, not {self.count}")
        return self.scatter / (self.count - 1)

    @property
    def factor(self) -> Float64[Tensor, "d d"]:
        """F with F F^T = covariance, computed once. Eigenvalues below the rounding error are 0."""
        factor = self._factor
        if factor is None:
            values, vectors = torch.linalg.eigh(self.covariance)
            rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
            factor = self._factor = vectors * values.where(values > rounding, 0).sqrt()
        return factor


def combine(blocks: Sequence[Moments]) -> Moments:
    """The moments of the rows of all blocks."""
    total = Moments(blocks[0].mean.numel())
    for block in blocks:
        total.add(block)
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2).

    The squared 2-Wasserstein distance of two Gaussians (Dowson & Landau 1982). It is called FID if
    the features are those of the standard Inception network (Heusel et al. 2017, arXiv:1706.08500).
    Covariances may be singular, as with fewer images than features.
    """
    # With S = F F^T, tr (S_a S_b)^1/2 is the sum of the singular values of F_a^T F_b. This avoids
    # square roots of rounding errors, which add 1e-8 instead of 1e-16 for each null direction.
    overlap = torch.linalg.svdvals(a.factor.T @ b.factor).sum()
    return _distance(a, b, overlap)


def _fast_distance(a: Moments, b: Moments) -> float:
    """`frechet_distance` with an error of about 1e-6; several times as fast for many a, one b."""
    squares = torch.linalg.eigvalsh(b.factor.T @ a.covariance @ b.factor)
    return _distance(a, b, squares.clamp(min=0).sqrt().sum())


def _distance(a: Moments, b: Moments, overlap: Tensor) -> float:
    traces = a.covariance.trace() + b.covariance.trace()
    return max(((a.mean - b.mean).square().sum() + traces - 2 * overlap).item(), 0.0)


STUDENT_T = {20: 2.093, 8: 2.365, 4: 3.182}
"""97.5 % quantile of Student's t with n - 1 degrees of freedom, for each number of blocks n."""


class MomentBlocks:
    """Moments of `total` rows that arrive in order, in contiguous blocks of nearly equal size.

    The memory is that of the blocks' covariances and does not grow with the number of rows. From
    the blocks we estimate the variance of a distance and its dependence on the number of rows. Each
    block has whole cycles of `cycle` rows, so that the classes of all blocks are equally frequent
    if they take turns.
    """

    def __init__(self, dim: int, total: int, *, cycle: int = 1) -> None:
        # fewer blocks for many features: the covariance of 2,048 features takes 32 MiB
        most = min(20 if dim <= 512 else 8, total // 2, total // cycle)
        count = next((n for n in STUDENT_T if n <= most), 1)
        self.total = total
        self.count = 0
        self.blocks = [Moments(dim) for _ in range(count)]
        self._ends = [cycle * (block * (total // cycle) // count) for block in range(1, count)]
        self._ends.append(total)

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Add the next rows."""
        while len(features):
            block = bisect_right(self._ends, self.count)
            room = self._ends[block] - self.count
            self.blocks[block].update(features[:room])
            self.count += min(room, len(features))
            features = features[room:]


class FrechetEstimate(NamedTuple):
    """A Fréchet distance with its 95 % interval, and its limit for infinitely many samples."""

    value: float
    low: float | None
    """Lower end of the 95 % interval: as many new samples would give a value in it. None if there
    are too few samples."""
    high: float | None
    infinite: float | None
    """The value extrapolated to infinitely many samples. None if there are too few samples for the
    number of features."""


def frechet_estimate(
    samples: MomentBlocks, reference: Moments, *, draws: int = 1000, seed: int = 0
) -> FrechetEstimate:
    """The Fréchet distance of all samples, its bootstrap interval, and its limit.

    The bias of the distance is c/n. The limit is the value at 1/n = 0 of a line through the
    distances of disjoint quarters, halves and all samples (Chong & Forsyth 2020, arXiv:1911.07023).
    """
    blocks, dim = samples.blocks, len(reference.mean)
    total = combine(blocks)
    value = frechet_distance(total, reference)
    if len(blocks) == 1 or samples.total <= dim:
        return FrechetEstimate(value, None, None, None)
    half_width = _half_width(blocks, total, reference, draws, seed)
    # a quarter must have two rows for each feature
    limit = _extrapolate(blocks, reference, value) if samples.total >= 8 * dim else None
    return FrechetEstimate(value, max(value - half_width, 0.0), value + half_width, limit)


def _half_width(
    blocks: Sequence[Moments], total: Moments, reference: Moments, draws: int, seed: int
) -> float:
    """Half the width of the 95 % interval, from a bootstrap of the blocks' influences.

    To first order, the influence of block p on the distance is

        2 (mu - mu_r).(mu_p - mu) + tr (I - A)(S_p - S),   A = F (F^T S F)^-1/2 F^T,   S_r = F F^T,

    the derivative in mean and covariance, weighted by the block's number of rows. To resample the
    blocks and compute the distance of each resample would give too wide an interval: repeated rows
    reduce the rank of the covariance, and this bias varies more between resamples than the distance
    does.
    """
    count = len(blocks)
    values, vectors = torch.linalg.eigh(reference.factor.T @ total.covariance @ reference.factor)
    rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
    inverse = values.where(values > rounding, torch.inf).rsqrt()
    root = reference.factor @ vectors * inverse.sqrt()
    slope = torch.eye(len(values), dtype=values.dtype) - root @ root.T
    shift = total.mean - reference.mean

    def influence(block: Moments) -> float:
        offset = block.mean - total.mean
        second = block.scatter / block.count + torch.outer(offset, offset)
        change = float(2 * shift @ offset + (slope * second).sum())
        return change * count * block.count / total.count

    influences = np.array([influence(block) for block in blocks])
    means = np.random.default_rng(seed).choice(influences, (draws, count)).mean(1)
    # corrects for the small number of blocks, and for the uncertainty of their variance
    return float(means.std() * (count / (count - 1)) ** 0.5 * STUDENT_T[count])


def _extrapolate(blocks: Sequence[Moments], reference: Moments, value: float) -> float:
    points: list[tuple[float, float]] = [(1 / sum(b.count for b in blocks), value)]
    for divisor in (2, 4):
        size = len(blocks) // divisor
        for first in range(0, len(blocks), size):
            part = combine(blocks[first : first + size])
            points.append((1 / part.count, _fast_distance(part, reference)))
    x, y = np.array(points).T
    # the variance of a distance is proportional to 1/n; polyfit squares its weights
    return float(np.polyfit(x, y, 1, w=x**-0.5)[1])
