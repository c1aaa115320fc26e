"""Nearest rows by exact Euclidean distance, at nearly the speed of a matrix product.

The formula |x|^2 + |y|^2 - 2 x.y is fast, but inaccurate for small distances: for a copy it gives
1e-8 or a negative number. We use it only to exclude pairs, with a proven bound on its rounding
error, and compute the distances of the remaining pairs from differences. Results are therefore
exact: a copy has distance 0, equal distances compare equal, and the block size has no effect.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from fewstep.errors import InputError

TILE = 1024  # rows of each side that are compared at once, which bounds the memory
GATHER_SIZE = 2**18  # numbers that are gathered at once for single pairs, to fit into a CPU's cache


class Nearest(NamedTuple):
    """The nearest rows of each query, nearest first. Distances have the units of the features."""

    distances: Float64[Tensor, "n k"]
    rows: Int64[Tensor, "n k"]


class Tile:
    """Rows in float64, and the same rows minus a centre, whose products are more accurate."""

    def __init__(self, rows: Float[Tensor, "n d"], centre: Float64[Tensor, " d"]) -> None:
        self.rows = rows.detach().cpu().double()
        self.centred = self.rows - centre
        self.squares: Float64[Tensor, " n"] = self.centred.square().sum(1)
        if not self.squares.isfinite().all():
            raise InputError("the features contain NaN or infinity; measure finite ones only")


def centre_of(rows: Float[Tensor, "n d"]) -> Float64[Tensor, " d"]:
    """The approximate mean of the rows, as centre of a `Tile`."""
    return rows.detach().cpu().mean(0).double()


def squared_distances(a: Tile, b: Tile) -> tuple[Float64[Tensor, "n m"], Float64[Tensor, "n m"]]:
    """Squared distances from products, and a bound on their difference from `distances` squared.

    The error of a dot product of d terms is at most d u sum|x_i y_i| (Higham 2002, section 3.1),
    where u is half of eps. The two norms, twice the product and the differences that we compare
    with add up to 2 d eps (|x|^2 + |y|^2); centring, roots and sums of three are within 32 eps.
    """
    norms = a.squares[:, None] + b.squares
    error = norms * ((2 * a.rows.shape[1] + 32) * torch.finfo(torch.float64).eps)
    return torch.addmm(norms, a.centred, b.centred.T, alpha=-2), error


def distances(a: Float64[Tensor, "*p n d"], b: Float64[Tensor, "*p m d"]) -> Tensor:
    """Distances of all pairs from differences. A pair has the same distance in every tile."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


class PairBatch(NamedTuple):
    """Pairs of a query and a row, with their distances."""

    queries: Int64[Tensor, " p"]
    rows: Int64[Tensor, " p"]
    distances: Float64[Tensor, " p"]


def pair_distances(a: Tile, b: Tile, mask: Bool[Tensor, "n m"]) -> PairBatch:
    """Exact distances of the pairs in `mask`, ordered by rows of a, then of b."""
    i, j = mask.nonzero(as_tuple=True)
    if 8 * len(i) > mask.numel():  # computing all pairs is faster than gathering some
        return PairBatch(i, j, distances(a.rows, b.rows)[i, j])
    at_once = max(GATHER_SIZE // max(a.rows.shape[1], 1), 1)
    parts = [
        distances(a.rows[rows_a][:, None], b.rows[rows_b][:, None]).flatten()
        for rows_a, rows_b in zip(i.split(at_once), j.split(at_once), strict=True)
    ]
    return PairBatch(i, j, torch.cat(parts))


def nearest(
    queries: Float[Tensor, "n d"],
    blocks: Iterable[Float[Tensor, "_ d"]],
    *,
    k: int = 1,
    exclude: Int64[Tensor, " n"] | None = None,
) -> Nearest:
    """The exact k nearest reference rows of each query: argmin_j |x_i - y_j|.

    The reference arrives in blocks of any size, and its rows are numbered consecutively. Of equally
    near rows the one with the lower number comes first. Query i ignores the row `exclude[i]`, such
    as itself.

    Raises: InputError if a query has fewer than k rows to choose from, or features are not finite.
    """
    n, count, centre = len(queries), 0, centre_of(queries)
    best = Nearest(
        torch.full((n, k), torch.inf, dtype=torch.float64),
        torch.full((n, k), -1, dtype=torch.int64),
    )
    for part in _regroup(blocks):
        reference = Tile(part, centre)
        for tile in (slice(start, start + TILE) for start in range(0, n, TILE)):
            own = None if exclude is None else exclude[tile].cpu() - count
            current = Nearest(best.distances[tile], best.rows[tile])
            pairs = _candidates(Tile(queries[tile], centre), reference, current, own)
            merged = _merge(current, pairs._replace(rows=pairs.rows + count))
            best.distances[tile], best.rows[tile] = merged
        count += len(part)
    if not best.distances.isfinite().all():
        others = "rows" if exclude is None else "other rows"
        raise InputError(f"the reference has {count} rows; for {k} nearest {others} give more")
    return best


def _regroup(blocks: Iterable[Float[Tensor, "_ d"]]) -> Iterator[Float[Tensor, "_ d"]]:
    """The same rows in blocks of at least TILE: each block takes a pass over the queries."""
    parts: list[Tensor] = []
    for part in (part for block in blocks for part in block.split(TILE)):
        parts.append(part)
        if sum(map(len, parts)) >= TILE:
            yield torch.cat(parts)
            parts = []
    if parts:
        yield torch.cat(parts)


def _candidates(
    query: Tile, reference: Tile, best: Nearest, own: Int64[Tensor, " n"] | None
) -> PairBatch:
    """All pairs of `query` and `reference` that may be among the k nearest.

    `best` are the nearest rows of earlier blocks; `own` is the row that each query ignores.
    """
    k, width = best.rows.shape[1], len(reference.rows)
    low, error = squared_distances(query, reference)
    low -= error
    if own is not None:
        in_block = ((own >= 0) & (own < width)).nonzero()[:, 0]
        low[in_block, own[in_block]] = torch.inf
    bound = best.distances[:, -1].clone()
    if width >= k:
        approximate, at = low.topk(k, dim=1, largest=False)
        # if these k may be nearer than the best so far, the farthest of them is a bound
        may_be_nearer = approximate[:, -1] < bound.square()
        likely = torch.zeros_like(low, dtype=torch.bool).scatter_(1, at, True)
        likely &= may_be_nearer[:, None]
        exact = pair_distances(query, reference, likely).distances
        bound[may_be_nearer] = bound[may_be_nearer].minimum(exact.view(-1, k).amax(1))
    mask = (low <= bound.square()[:, None]) & low.isfinite()
    return pair_distances(query, reference, mask)


def _merge(best: Nearest, pairs: PairBatch) -> Nearest:
    """The k nearest rows of `best` and `pairs` for each query, by distance, then by row."""
    n, k = best.rows.shape
    queries = torch.cat([torch.arange(n).repeat_interleave(k), pairs.queries]).numpy()
    rows = torch.cat([best.rows.flatten(), pairs.rows]).numpy()
    exact = torch.cat([best.distances.flatten(), pairs.distances]).numpy()
    order = np.lexsort((rows, exact, queries))
    rank = np.arange(len(queries)) - np.searchsorted(queries[order], queries[order])
    order = order[rank < k].reshape(n, k)
    return Nearest(torch.from_numpy(exact[order]), torch.from_numpy(rows[order]))


def copy_radius(
    sample: Float[Tensor, "m d"],
    rows: Int64[Tensor, " m"],
    blocks: Iterable[Float[Tensor, "_ d"]],
    *,
    share: float = 0.01,
) -> float:
    """The distance within which a `share` of the reference rows have another reference row.

    It is the `share`-quantile over the sample of min_{j != i} |y_i - y_j|: by exchangeability, a
    new row of the same distribution is nearer to the reference with probability `share` (the
    quantile at `share` (m + 1) of m; Hyndman & Fan 1996, type 6). The share of generated rows with
    a reference row within the radius then measures memorisation: it is `share` for rows as new as
    held-out data, and 1 if all are copies.

    `sample` are rows of the reference and `rows` their numbers in it. The radius has the units of
    the features. It is 0 if at least a `share` of the rows are duplicates.

    Raises: InputError for a sample of fewer than 1/share - 1 rows.
    """
    if share * (len(sample) + 1) < 1:
        least = int(np.ceil(1 / share - 1))
        raise InputError(
            f"a radius for a share of {share:g} needs at least {least} rows, not {len(sample)}"
        )
    others = nearest(sample, blocks, exclude=rows).distances[:, 0]
    return float(np.quantile(others.numpy(), share, method="weibull"))
