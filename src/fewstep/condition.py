"""Conditions of generation: one value that accompanies a batch of images.

A `Condition` holds class labels. Only data sets, which create conditions, and backbones, which
embed them, access its fields, so a new kind of condition needs no change elsewhere.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

NO_LABEL = -1  # label of a row without a class


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch, one row each. `label` is a class number, or -1 for none."""

    label: Int64[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.label)

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        return Condition(self.label[rows])

    def to(self, device: torch.device | str) -> "Condition":
        return Condition(self.label.to(device))

    def null(self) -> "Condition":
        """The same number of rows, all unconditional."""
        return Condition(torch.full_like(self.label, NO_LABEL))

    def drop(self, drop: Tensor) -> "Condition":
        """The same rows, unconditional where the boolean vector `drop` is true."""
        return Condition(torch.where(drop, NO_LABEL, self.label))

    def concat(self, other: "Condition") -> "Condition":
        """These rows, followed by those of `other`."""
        return Condition(torch.cat([self.label, other.label]))
