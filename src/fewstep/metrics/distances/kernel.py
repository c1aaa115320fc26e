"""The kernel distance between two sets of features, with a confidence interval."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from fewstep.errors import InputError

TILE = 1024  # rows of each set that are multiplied at once, which bounds the memory
NORMAL_95 = 1.96


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def kernel_distance(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, blocks: int = 20
) -> Estimate:
    """The unbiased squared maximum mean discrepancy of the cubic kernel, over all rows.

    E k(x, x') + E k(y, y') - 2 E k(x, y), k(x, y) = (x.y / d + 1)^3, over pairs of distinct rows
    (Bińkowski et al. 2018, arXiv:1801.01401). It is called KID if the features are those of the
    standard Inception network. It is 0 for equal distributions; its estimate may be negative. Its
    unit is the cube of the features' mean square.

    The interval is value +- 1.96 s, where s^2 is the sum of two delete-one-block jackknife
    variances (Efron & Stein 1981), over `blocks` contiguous equal ranges of the rows of a and of b.
    Rows must be in random order. Near 0 the estimate is not normally distributed and the interval
    is too wide. With 2 rows in a set the interval is infinite.

    Raises: InputError for a set of fewer than 2 rows.
    """
    if min(len(a), len(b)) < 2:
        raise InputError(
            f"a kernel distance needs at least 2 rows a set, not {len(a)} and {len(b)}"
        )
    sizes_a, sizes_b = _sizes(len(a), blocks), _sizes(len(b), blocks)
    ab = _sums(a, b, sizes_a, sizes_b)
    aa = _sums(a, a, sizes_a, sizes_a, distinct=True)
    bb = _sums(b, b, sizes_b, sizes_b, distinct=True)
    within = aa.sum() / _pairs(len(a)) + bb.sum() / _pairs(len(b))
    value = (within - 2 * ab.sum() / (len(a) * len(b))).item()
    variance = _jackknife(aa, ab, sizes_a, len(b)) + _jackknife(bb, ab.T, sizes_b, len(a))
    half_width = NORMAL_95 * math.sqrt(variance)
    return Estimate(value, value - half_width, value + half_width)


def _sizes(rows: int, blocks: int) -> Int64[Tensor, " p"]:
    """The number of rows in each of `blocks` ranges, which are equal up to one row.

    With fewer rows than `blocks`, each range has one row.
    """
    count = min(blocks, rows)
    return rows // count + (torch.arange(count) < rows % count).long()


def _pairs(rows: Float64[Tensor, "*p"] | int) -> Float64[Tensor, "*p"] | int:
    """The number of ordered pairs of distinct rows."""
    return rows * (rows - 1)


def _jackknife(
    own: Float64[Tensor, "p p"],
    cross: Float64[Tensor, "p q"],
    sizes: Int64[Tensor, " p"],
    others: int,
) -> float:
    """The variance due to one of the two sets, from the kernel's sums over pairs of its blocks.

    It is (p - 1) / p sum_g (T_-g - mean T_-g)^2, where T_-g is the statistic without the rows of
    block g.
    """
    blocks, left = len(sizes), (sizes.sum() - sizes).double()
    if left.min() < 2:
        return math.inf
    own_left = own.sum() - own.sum(0) - own.sum(1) + own.diagonal()
    cross_left = cross.sum() - cross.sum(1)
    without = own_left / _pairs(left) - 2 * cross_left / (left * others)
    return ((blocks - 1) * without.var(correction=0)).item()


def _sums(
    a: Float[Tensor, "n d"],
    b: Float[Tensor, "m d"],
    sizes_a: Int64[Tensor, " p"],
    sizes_b: Int64[Tensor, " q"],
    *,
    distinct: bool = False,
) -> Float64[Tensor, "p q"]:
    """The sum of the kernel over each pair of blocks.

    With `distinct`, b must be a, and pairs of a row with itself are left out.
    """
    total = torch.zeros(len(sizes_a), len(sizes_b), dtype=torch.float64)
    for i in range(0, len(a), TILE):
        rows, row_blocks = _tile(a, sizes_a, i)
        for j in range(i if distinct else 0, len(b), TILE):
            columns, column_blocks = _tile(b, sizes_b, j)
            gram = (rows @ columns.T).div_(a.shape[1]).add_(1)
            gram *= gram.square()
            if distinct and i == j:
                gram.fill_diagonal_(0)
            sums = row_blocks.T @ (gram @ column_blocks)
            total += sums
            if distinct and i != j:
                total += sums.T  # the tile on the other side of the diagonal
    return total


def _tile(
    rows: Float[Tensor, "n d"], sizes: Int64[Tensor, " p"], start: int
) -> tuple[Float64[Tensor, "t d"], Float64[Tensor, "t p"]]:
    """At most TILE rows from `start` on, and the number of each row's block as a one-hot vector."""
    tile = rows[start : start + TILE].detach().cpu().double()
    block = torch.searchsorted(sizes.cumsum(0), torch.arange(start, start + len(tile)), right=True)
    return tile, torch.nn.functional.one_hot(block, len(sizes)).double()
