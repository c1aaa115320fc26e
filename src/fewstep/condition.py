"""Conditions of generation: one value that accompanies a batch of images.

A `Condition` holds class labels and labels of augmentation. Only data sets, which create
conditions, and backbones, which embed them, access its fields, so a new kind of condition needs no
change elsewhere.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

NO_LABEL = -1  # label of a row without a class
AUGMENT_LABELS = 9
"""Labels of EDM's augmentation per row: x-flip, y-flip, scale, rotation (2), anisotropy (2) and
translation (2)."""


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch, one row each. At least one of the fields is not None."""

    label: Int64[Tensor, " b"] | None
    """A class number, or -1 for none. None for images without classes."""
    augment_labels: Float[Tensor, "b 9"] | None = None
    """How the images were augmented in training, see `data.augment`; 0, like None, means that they
    were not."""

    def __len__(self) -> int:
        return next(len(f) for f in (self.label, self.augment_labels) if f is not None)

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        label, labels = self.label, self.augment_labels
        return Condition(
            None if label is None else label[rows], None if labels is None else labels[rows]
        )

    def to(self, device: torch.device | str) -> "Condition":
        label, labels = self.label, self.augment_labels
        return Condition(
            None if label is None else label.to(device),
            None if labels is None else labels.to(device),
        )

    def null(self) -> "Condition":
        """The same number of rows, all without class. They keep their labels of augmentation."""
        label = self.label
        return self if label is None else replace(self, label=torch.full_like(label, NO_LABEL))

    def drop(self, drop: Tensor) -> "Condition":
        """The same rows, without class where the boolean vector `drop` is true.

        They keep their labels of augmentation, without which the augmentation would leak.
        """
        label = self.label
        return self if label is None else replace(self, label=torch.where(drop, NO_LABEL, label))

    def concat(self, other: "Condition") -> "Condition":
        """These rows, followed by those of `other`; both have the same fields."""
        pairs = (self.label, other.label), (self.augment_labels, other.augment_labels)
        return Condition(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))


def row_labels(cond: Condition | None, rows: int) -> Int64[Tensor, " b"]:
    """The class number of each of `rows` rows, -1 for none."""
    no_labels = torch.full((rows,), NO_LABEL)
    return no_labels if cond is None or cond.label is None else cond.label


def with_augment_labels(cond: Condition | None, labels: Float[Tensor, "b 9"]) -> Condition:
    """The condition of the same images, augmented: with `labels` that say how."""
    return Condition(None if cond is None else cond.label, labels)
