"""The Fréchet distance between two sets of features, from their mean and covariance."""

from collections.abc import Iterable

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor

from fewstep.errors import InputError
from fewstep.metrics.features import Extractor


class Moments:
    """Mean and covariance of features that arrive in batches, in float64 and on the CPU.

    Each batch is centred by itself and joined by the pairwise update (Chan, Golub & LeVeque 1979),
    so neither batch size nor order matters beyond float64 rounding, whatever the features' offset.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: Float64[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Float[Tensor, "n d"]) -> None:
        """Join a batch of at least one row."""
        rows = features.detach().cpu().double()
        mean, count = rows.mean(0), self.count + len(rows)
        centred, shift = rows - mean, mean - self.mean
        between = torch.outer(shift, shift) * (self.count * len(rows) / count)
        self._scatter += centred.T @ centred + between
        self.mean = self.mean + shift * (len(rows) / count)
        self.count = count

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        """The unbiased estimate, over n - 1."""
        if self.count < 2:
            raise InputError(f"a Fréchet distance needs at least 2 images a set, not {self.count}")
        return self._scatter / (self.count - 1)


def moments(extractor: Extractor, batches: Iterable[UInt8[Tensor, "_ c h w"]]) -> Moments:
    """The moments of all images' features; memory does not grow with the number of batches."""
    features = map(extractor, batches)
    first = next(features, None)
    if first is None:
        raise InputError("there are no images to measure; ask for at least 2")
    result = Moments(first.shape[1])
    result.update(first)
    for batch in features:
        result.update(batch)
    return result


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^1/2).

    The squared 2-Wasserstein distance of two Gaussians (Dowson & Landau 1982), called FID when the
    features are those of the standard Inception network (Heusel et al. 2017, arXiv:1706.08500).
    Covariances may be singular, as those of fewer images than features are.
    """
    cov_a, cov_b = a.covariance, b.covariance
    # With S = F F^T, tr (S_a S_b)^1/2 is the sum of the singular values of F_a^T F_b. No root is
    # taken of a rounding error, which would put 1e-8 in place of 1e-16 for each null direction.
    overlap = torch.linalg.svdvals(_factor(cov_a).T @ _factor(cov_b)).sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(distance.item(), 0.0)


def _factor(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """F with F F^T = S; eigenvalues that are nothing but rounding count as zero."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors * values.where(values > rounding, 0).sqrt()
