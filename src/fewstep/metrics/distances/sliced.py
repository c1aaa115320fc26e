"""The sliced Wasserstein distance between two sets of points, for few dimensions."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fewstep.metrics.measures import Measure


def sliced_wasserstein(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, projections: int = 128, seed: int = 0
) -> float:
    """Root mean square, over random lines, of the 2-Wasserstein distance of the projected points.

    SW2^2 = E_w W2^2(w.a, w.b) over unit vectors w, `projections` of them drawn from `seed`
    (Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3). The numbers of points may differ. It has
    the units of the points: a shift by v gives about |v| / sqrt(d).
    """
    generator = torch.Generator().manual_seed(seed)
    lines = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    lines = lines / lines.norm(dim=0)
    a, b = a.detach().cpu().double() @ lines, b.detach().cpu().double() @ lines
    return _squared_along_lines(a, b).mean().sqrt().item()


def _squared_along_lines(
    a: Float64[Tensor, "n p"], b: Float64[Tensor, "m p"]
) -> Float64[Tensor, " p"]:
    """W2^2 of each column: the integral of the squared difference of the two quantile functions.

    Both are step functions, constant between multiples of 1/n and 1/m, so the integral is a sum.
    """
    n, m = len(a), len(b)
    # in units of 1/(n m), so that equal breakpoints are equal integers
    cuts = torch.cat([torch.arange(n) * m, torch.arange(m) * n]).unique()
    widths = torch.diff(cuts, append=torch.tensor([n * m])).double() / (n * m)
    squares = (a.sort(0).values[cuts // m] - b.sort(0).values[cuts // n]).square()
    return widths @ squares


SLICED_WASSERSTEIN = Measure(
    "sliced_wasserstein",
    "Sliced Wasserstein distance",
    "lower",
    "How far the samples' features, projected on random lines, must be moved to those of the real "
    "images. It decreases towards 0 for equal distributions as the number of samples grows.",
    compute=sliced_wasserstein,
)
