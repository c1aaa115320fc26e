"""Optimal transport between the noise and the images of a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.couplings.base import Coupling, Pairing, class_rows
from fewstep.latents import Rows


@dataclass(frozen=True)
class MinibatchOT(Coupling):
    """The noise of a batch is reordered to be nearest to its images, within each class.

    The assignment is exact, over the whole batch of all micro-batches and ranks. A reordering of
    independent noise is normal as a whole, and it stays so within a class that is matched by
    itself; matched across classes, each class would have noise of its own, which samples do not
    have (Cheng and Schwing 2025, arXiv:2503.10636).
    Tong et al. 2023, arXiv:2302.00482; Pooladian et al. 2023, arXiv:2304.14772.
    """

    def bind(self, images: Rows, labels: Tensor | None, device: torch.device) -> Pairing:
        return _MinibatchPairing()


class _MinibatchPairing(Pairing):
    def arrange(self, noise: Tensor, x0: Tensor, labels: Tensor | None) -> Tensor:
        arranged = noise.clone()
        for rows in class_rows(labels, len(noise)):
            arranged[rows] = noise[rows][nearest(noise[rows], x0[rows])]
        return arranged


def nearest(noise: Tensor, x0: Tensor) -> Tensor:
    """The permutation (b,) of `noise` (b, ...) with the least sum of squared distances to `x0`."""
    from scipy.optimize import linear_sum_assignment

    # |x0 − eps|² = |x0|² + |eps|² − 2·x0·eps, of which only the product depends on the order
    products = x0.flatten(1).double() @ noise.flatten(1).double().T
    _, order = linear_sum_assignment(products.numpy(), maximize=True)
    return torch.from_numpy(order)
