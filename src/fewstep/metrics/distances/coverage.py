"""Precision, recall, density and coverage: how much two sets of features overlap.

The support of a set is estimated as the union of balls, one around each row, whose radius is the
distance to its k-th nearest other row. All four measures count rows inside these balls. The counts
are exact (see `neighbours`), so that duplicates, ties, the order of rows and the block size do not
change them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fewstep.errors import InputError
from fewstep.metrics.distances.neighbours import (
    TILE,
    Tile,
    centre_of,
    nearest,
    pair_distances,
    squared_distances,
)


class PrecisionRecall(NamedTuple):
    """Precision and recall, both in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density is at least 0, about 1 for equal distributions, and above 1 if fake rows lie mostly
    where real rows are dense. Coverage is in [0, 1]."""

    density: float
    coverage: float


def precision_recall(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """The share of fake rows inside real balls, and of real rows inside fake balls.

    precision = mean_j 1[min_i |y_j - x_i| - r_i <= 0], where r_i is the distance from x_i to its
    k-th nearest other row; recall is the same with the sets exchanged (Kynkäänniemi et al. 2019,
    arXiv:1904.06991). Balls are closed: a set against itself has precision and recall 1, with or
    without duplicates. Both depend on the numbers of rows; compare values of equal numbers only.

    Raises: InputError for a set of k rows or fewer.
    """
    within_real, _ = _counts(fake, real, _radii(real, k, "real"))
    within_fake, _ = _counts(real, fake, _radii(fake, k, "fake"))
    return PrecisionRecall(_fraction_above_zero(within_real), _fraction_above_zero(within_fake))


def density_coverage(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 5
) -> DensityCoverage:
    """Average number of real balls around a fake row, divided by k, and share of balls with any.

    density = sum_ij 1[|y_j - x_i| <= r_i] / (k m) and coverage = mean_i 1[min_j |y_j - x_i| <= r_i]
    (Naeem et al. 2020, arXiv:2002.09797), where r_i is the distance from x_i to its k-th nearest
    other real row. Balls are closed, while those of the authors' code are open. This matters only
    for copies and ties: real rows against themselves have density (k + 1) / k.

    Raises: InputError for k real rows or fewer, or no fake rows.
    """
    if len(fake) == 0:
        raise InputError("there are no fake rows to measure; give at least one")
    per_fake, per_ball = _counts(fake, real, _radii(real, k, "real"))
    return DensityCoverage(per_fake.sum().item() / (k * len(fake)), _fraction_above_zero(per_ball))


def _fraction_above_zero(counts: Int64[Tensor, " n"]) -> float:
    return (counts > 0).sum().item() / len(counts)


def _radii(rows: Float[Tensor, "n d"], k: int, set_name: str) -> Float64[Tensor, " n"]:
    """Each row's distance to its k-th nearest other row."""
    if len(rows) <= k:
        raise InputError(f"k = {k} needs at least {k + 1} {set_name} rows, not {len(rows)}")
    return nearest(rows, [rows], k=k, exclude=torch.arange(len(rows))).distances[:, -1]


def _counts(
    points: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], radii: Float64[Tensor, " m"]
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " m"]]:
    """For each point the number of balls that contain it; for each ball that of its points."""
    centre = centre_of(centres)
    by_point = torch.zeros(len(points), dtype=torch.int64)
    by_ball = torch.zeros(len(centres), dtype=torch.int64)
    for columns in (slice(start, start + TILE) for start in range(0, len(centres), TILE)):
        ball, radius = Tile(centres[columns], centre), radii[columns]
        for rows in (slice(start, start + TILE) for start in range(0, len(points), TILE)):
            point = Tile(points[rows], centre)
            approximate, error = squared_distances(point, ball)
            approximate -= radius.square()
            inside = approximate <= -error
            # pairs within the rounding error are decided by their exact distance
            i, j, exact = pair_distances(point, ball, (approximate <= error) & ~inside)
            inside[i, j] = exact <= radius[j]
            by_point[rows] += inside.sum(1)
            by_ball[columns] += inside.sum(0)
    return by_point, by_ball
