"""Nearest rows by exact Euclidean distance, at nearly the speed of a matrix product.

|x|^2 + |y|^2 - 2 x.y is fast and loses the digits of small distances: of a copy it makes 1e-8, or
the root of a negative number. Here it only rules pairs out, by a bound on its rounding that is
proven; the few pairs left are measured by their differences. So every answer is that of the
differences themselves: a copy is at exactly 0, ties are ties, and no block size shows.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from fewstep.errors import InputError

TILE = 1024  # rows of either side compared at once: bounds the memory, not the result
GATHERED = 2**18  # numbers gathered at once for single pairs: what stays in a cache


class Nearest(NamedTuple):
    """The nearest rows of each query, ascending: distances in the units of the features."""

    distances: Float64[Tensor, "n k"]
    rows: Int64[Tensor, "n k"]


class Tile:
    """A few rows in float64, and the same rows about a centre, where products lose least."""

    def __init__(self, rows: Float[Tensor, "n d"], centre: Float64[Tensor, " d"]) -> None:
        self.rows = rows.detach().cpu().double()
        self.centred = self.rows - centre
        self.squares: Float64[Tensor, " n"] = self.centred.square().sum(1)
        if not self.squares.isfinite().all():
            raise InputError("the features hold NaN or infinity; measure only finite ones")


def centre_of(rows: Float[Tensor, "n d"]) -> Float64[Tensor, " d"]:
    """The mean, roughly: any point near the rows serves `Tile` as well."""
    return rows.detach().cpu().mean(0).double()


def squared(a: Tile, b: Tile) -> tuple[Float64[Tensor, "n m"], Float64[Tensor, "n m"]]:
    """Squared distances by products, and how far each may be from `distances` squared.

    A dot product of d terms errs by at most d u sum|x_i y_i| (Higham 2002, section 3.1), with u
    half of eps. The two norms, twice the product and the differences that we compare with give
    2 d eps (|x|^2 + |y|^2) together; centring, roots and sums of three stay within 32 eps.
    """
    norms = a.squares[:, None] + b.squares
    slack = norms * ((2 * a.rows.shape[1] + 32) * torch.finfo(torch.float64).eps)
    return torch.addmm(norms, a.centred, b.centred.T, alpha=-2), slack


def distances(a: Float64[Tensor, "*p n d"], b: Float64[Tensor, "*p m d"]) -> Tensor:
    """Of all pairs, by differences: each pair by itself, so that it is equal wherever it occurs."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


class PairBatch(NamedTuple):
    """Pairs that were measured: query, row and distance."""

    queries: Int64[Tensor, " p"]
    rows: Int64[Tensor, " p"]
    distances: Float64[Tensor, " p"]


def distances_of(a: Tile, b: Tile, wanted: Bool[Tensor, "n m"]) -> PairBatch:
    """Measure the wanted pairs, in the order of a's rows and then of b's."""
    i, j = wanted.nonzero(as_tuple=True)
    if 8 * len(i) > wanted.numel():  # one by one would be slower than all
        return PairBatch(i, j, distances(a.rows, b.rows)[i, j])
    at_once = max(GATHERED // max(a.rows.shape[1], 1), 1)
    parts = [
        distances(a.rows[some][:, None], b.rows[other][:, None]).flatten()
        for some, other in zip(i.split(at_once), j.split(at_once), strict=True)
    ]
    return PairBatch(i, j, torch.cat(parts))


def nearest(
    queries: Float[Tensor, "n d"],
    blocks: Iterable[Float[Tensor, "_ d"]],
    *,
    k: int = 1,
    exclude: Int64[Tensor, " n"] | None = None,
) -> Nearest:
    """The k nearest reference rows of each query, exactly: argmin_j |x_i - y_j|.

    The reference comes in blocks of any size; its rows are numbered through as they arrive, and
    of rows equally near the lower number is nearer. Query i does not find row `exclude[i]`: itself.
    Raises InputError for fewer than k rows that may be found, and for features not finite.
    """
    n, seen, centre = len(queries), 0, centre_of(queries)
    best = Nearest(
        torch.full((n, k), torch.inf, dtype=torch.float64),
        torch.full((n, k), -1, dtype=torch.int64),
    )
    for part in _gathered(blocks):
        reference = Tile(part, centre)
        for mine in (slice(start, start + TILE) for start in range(0, n, TILE)):
            own = None if exclude is None else exclude[mine].cpu() - seen
            so_far = Nearest(best.distances[mine], best.rows[mine])
            found = _closer(Tile(queries[mine], centre), reference, so_far, own)
            merged = _merged(so_far, found._replace(rows=found.rows + seen))
            best.distances[mine], best.rows[mine] = merged
        seen += len(part)
    if not best.distances.isfinite().all():
        others = "rows" if exclude is None else "other rows"
        raise InputError(f"the reference has {seen} rows; for {k} nearest {others} give more")
    return best


def _gathered(blocks: Iterable[Float[Tensor, "_ d"]]) -> Iterator[Float[Tensor, "_ d"]]:
    """The same rows, TILE and more at a time: every part costs a pass over the queries."""
    parts: list[Tensor] = []
    for part in (part for block in blocks for part in block.split(TILE)):
        parts.append(part)
        if sum(map(len, parts)) >= TILE:
            yield torch.cat(parts)
            parts = []
    if parts:
        yield torch.cat(parts)


def _closer(
    query: Tile, reference: Tile, best: Nearest, own: Int64[Tensor, " n"] | None
) -> PairBatch:
    """All pairs that may be among the k nearest, given the best so far."""
    k, width = best.rows.shape[1], len(reference.rows)
    low, slack = squared(query, reference)
    low -= slack
    if own is not None:
        here = ((own >= 0) & (own < width)).nonzero()[:, 0]
        low[here, own[here]] = torch.inf
    bound = best.distances[:, -1].clone()
    if width >= k:
        rough, at = low.topk(k, dim=1, largest=False)
        # where the k roughly nearest may be nearer than the best, the farthest of them is a bound
        rival = rough[:, -1] < bound.square()
        likely = torch.zeros_like(low, dtype=torch.bool).scatter_(1, at, True) & rival[:, None]
        away = distances_of(query, reference, likely).distances
        bound[rival] = bound[rival].minimum(away.view(-1, k).amax(1))
    wanted = (low <= bound.square()[:, None]) & low.isfinite()
    return distances_of(query, reference, wanted)


def _merged(best: Nearest, found: PairBatch) -> Nearest:
    """The k nearest of both, by distance and then by row."""
    n, k = best.rows.shape
    who = torch.cat([torch.arange(n).repeat_interleave(k), found.queries]).numpy()
    rows = torch.cat([best.rows.flatten(), found.rows]).numpy()
    away = torch.cat([best.distances.flatten(), found.distances]).numpy()
    order = np.lexsort((rows, away, who))
    place = np.arange(len(who)) - np.searchsorted(who[order], who[order])
    order = order[place < k].reshape(n, k)
    return Nearest(torch.from_numpy(away[order]), torch.from_numpy(rows[order]))


def copy_radius(
    sample: Float[Tensor, "m d"],
    rows: Int64[Tensor, " m"],
    blocks: Iterable[Float[Tensor, "_ d"]],
    *,
    share: float = 0.01,
) -> float:
    """The distance within which only a `share` of the reference has another reference row.

    The `share`-quantile over the sample of min_{j != i} |y_i - y_j|: a fresh row of the same
    distribution is nearer to the reference with probability `share`, by exchangeability (the
    quantile at `share` (m + 1) of m; Hyndman & Fan 1996, type 6). The share of generated rows
    whose nearest reference row is within the radius is then a figure of memorisation: `share` if
    they are as new as held-out data, 1 if all are copies.

    `sample` are rows of the reference and `rows` their numbers in it. In the units of the
    features, and 0 where a `share` of the reference are duplicates. Raises InputError for a sample
    too small to tell: fewer than 1/share - 1 rows.
    """
    if share * (len(sample) + 1) < 1:
        least = int(np.ceil(1 / share - 1))
        raise InputError(
            f"a share of {share:g} is not told by {len(sample)} rows; give at least {least}"
        )
    others = nearest(sample, blocks, exclude=rows).distances[:, 0]
    return float(np.quantile(others.numpy(), share, method="weibull"))
