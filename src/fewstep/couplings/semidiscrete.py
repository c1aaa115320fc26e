"""Optimal transport between the normal distribution and the images of a set."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from fewstep.couplings.base import Coupling, Pairing, class_rows
from fewstep.couplings.dual_weights import set_weights
from fewstep.images import from_uint8
from fewstep.latents import Rows

PRODUCTS = 1 << 25
"""Largest number of products of noise and images that are computed at once."""


@dataclass(frozen=True)
class SemidiscreteOT(Coupling):
    """Each noise gets the image x of its class with the largest noise·x + g(x).

    The dual weights g, one number for each image, are such that all images of a class are equally
    likely; this is then the optimal transport. They are computed once for a set, and cached. An
    epoch has each image once on average, not exactly.
    Mousavi-Hosseini et al. 2025, arXiv:2509.25519.
    """

    takes_mirrored: ClassVar[bool] = False
    noises: Annotated[int, Ge(1), Le(100_000)] = 32
    """Noises drawn for each image while its dual weight is computed; more make images more nearly
    equally likely."""

    def bind(self, images: Rows, labels: Tensor | None, device: torch.device) -> Pairing:
        points = images[torch.arange(len(images))]
        points = (from_uint8(points) if points.dtype == torch.uint8 else points).flatten(1)
        weights = set_weights(points, class_rows(labels, len(points)), self.noises, device)
        return SemidiscretePairing(points.to(device), weights.to(device), labels)


class SemidiscretePairing(Pairing):
    """The pairing with `points` (n, d) by their dual weights (n,)."""

    def __init__(self, points: Tensor, weights: Tensor, labels: Tensor | None) -> None:
        self._labels = torch.zeros(len(points), dtype=torch.int64) if labels is None else labels
        self._classes = {
            int(self._labels[rows[0]]): (rows, points[rows.to(points.device)], weights[rows])
            for rows in class_rows(labels, len(points))
        }

    def choose(self, noise: Tensor, index: Tensor) -> Tensor:
        numbers, labels = index.clone(), self._labels[index]
        for rows in class_rows(labels, len(index)):
            own_rows, points, weights = self._classes[int(labels[rows[0]])]
            for part in rows.split(max(1, PRODUCTS // len(points))):
                own = noise[part].flatten(1).to(points.device, points.dtype)
                numbers[part] = own_rows[torch.addmm(weights, own, points.T).argmax(1).cpu()]
        return numbers
