"""How much of one set lies on the other: precision, recall, density and coverage.

A set's support is guessed as the union of balls, one about each row, out to its k-th nearest other
row. All four are shares or means of counts of rows in balls; the counts are exact (see
`neighbours`), so that duplicates, ties, order and blocks of computation cannot move them.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fewstep.errors import InputError
from fewstep.metrics.neighbours import TILE, Tile, centre_of, distances_of, nearest, squared


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density from 0, about 1 for equal distributions and above where fakes crowd; coverage in
    [0, 1]."""

    density: float
    coverage: float


def precision_recall(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 3
) -> PrecisionRecall:
    """The share of fake rows within the real balls, and of real rows within the fake balls.

    precision = mean_j 1[min_i |y_j - x_i| - r_i <= 0], r_i the distance from x_i to its k-th
    nearest other row, and recall the same with the sets exchanged (Kynkäänniemi et al. 2019,
    arXiv:1904.06991). Balls are closed: a set against itself has 1 and 1, duplicates or not.
    Both depend on the counts: compare only at equal ones. Raises InputError for a set of k rows or
    fewer.
    """
    within_real, _ = _counts(fake, real, _radii(real, k, "real"))
    within_fake, _ = _counts(real, fake, _radii(fake, k, "fake"))
    return PrecisionRecall(_share(within_real), _share(within_fake))


def density_coverage(
    real: Float[Tensor, "n d"], fake: Float[Tensor, "m d"], *, k: int = 5
) -> DensityCoverage:
    """How many real balls hold a fake row, and the share of real balls that hold any.

    density = sum_ij 1[|y_j - x_i| <= r_i] / (k m) and coverage = mean_i 1[min_j |y_j - x_i| <= r_i]
    (Naeem et al. 2020, arXiv:2002.09797), r_i the distance from x_i to its k-th nearest other real
    row. Balls are closed, where the authors' code leaves out the rim; only copies and ties differ:
    real rows against themselves have density (k + 1) / k. Raises InputError for k real rows or
    fewer, or no fake ones.
    """
    if len(fake) == 0:
        raise InputError("there are no fake rows to measure; give at least one")
    balls, held = _counts(fake, real, _radii(real, k, "real"))
    return DensityCoverage(balls.sum().item() / (k * len(fake)), _share(held))


def _share(counts: Int64[Tensor, " n"]) -> float:
    return (counts > 0).sum().item() / len(counts)


def _radii(rows: Float[Tensor, "n d"], k: int, which: str) -> Float64[Tensor, " n"]:
    """Each row's distance to its k-th nearest other row."""
    if len(rows) <= k:
        raise InputError(f"k = {k} asks for at least {k + 1} {which} rows, not {len(rows)}")
    return nearest(rows, [rows], k=k, exclude=torch.arange(len(rows))).distances[:, -1]


def _counts(
    points: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], radii: Float64[Tensor, " m"]
) -> tuple[Int64[Tensor, " n"], Int64[Tensor, " m"]]:
    """How many balls hold each point, and how many points each ball holds."""
    middle = centre_of(centres)
    by_point = torch.zeros(len(points), dtype=torch.int64)
    by_ball = torch.zeros(len(centres), dtype=torch.int64)
    for theirs in (slice(start, start + TILE) for start in range(0, len(centres), TILE)):
        ball, radius = Tile(centres[theirs], middle), radii[theirs]
        for mine in (slice(start, start + TILE) for start in range(0, len(points), TILE)):
            point = Tile(points[mine], middle)
            rough, slack = squared(point, ball)
            rough -= radius.square()
            inside = rough <= -slack
            # what rounding leaves open, the differences decide
            i, j, away = distances_of(point, ball, (rough <= slack) & ~inside)
            inside[i, j] = away <= radius[j]
            by_point[mine] += inside.sum(1)
            by_ball[theirs] += inside.sum(0)
    return by_point, by_ball
