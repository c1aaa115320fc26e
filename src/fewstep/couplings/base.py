"""The base classes of couplings.

A network that learns to predict x0 and eps from x_t = alpha·x0 + sigma·eps may be trained on any
pairs (x0, eps) of which the noise is standard normal and the images are those of the set, also
within each class. Its sampling ODE then leads from noise to the images of each class. Pairs whose
distance is small have straighter paths, which need fewer steps.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fewstep.latents import Rows


class Pairing:
    """Pairs the noise of a batch with images of a set.

    A subclass replaces one of the two functions, which receive the whole batch of all ranks, on
    the CPU. The rows of a batch have independent noise and shuffled images otherwise.
    """

    def choose(self, noise: Tensor, index: Tensor) -> Tensor:
        """The numbers (b,) of the images to pair with `noise` (b, ...).

        `index` (b,) are those of the shuffled set, whose labels must not change.
        """
        return index

    def arrange(self, noise: Tensor, x0: Tensor, labels: Tensor | None) -> Tensor:
        """The rows of `noise` (b, ...) in another order, that of the images `x0` (b, ...).

        `labels` (b,) are the classes of the images. Rows are exchanged within a class only: the
        noise of a class would not be normal otherwise.
        """
        return noise


@dataclass(frozen=True)
class Coupling(ABC):
    """Base class of couplings, which are settings of a recipe."""

    noun: ClassVar[str] = "coupling"
    takes_mirrored: ClassVar[bool] = True
    """Whether images may be mirrored at random after they are paired (`data.flip`)."""

    @abstractmethod
    def bind(self, images: Rows, labels: Tensor | None, device: torch.device) -> Pairing | None:
        """The pairing for a set: `images` (n, ...), in uint8 or as they are, with `labels` (n,).

        None for independent noise. May take long, once for a set. All ranks must call this.
        """


@dataclass(frozen=True)
class Independent(Coupling):
    """Noise that does not depend on the image, as in DDPM, EDM and flow matching."""

    def bind(self, images: Rows, labels: Tensor | None, device: torch.device) -> None:
        return None


def class_rows(labels: Tensor | None, rows: int) -> list[Tensor]:
    """The row numbers of each class; all `rows` without labels."""
    if labels is None:
        return [torch.arange(rows)]
    return [(labels == label).nonzero().flatten() for label in labels.unique()]
