"""What to generate, as one value that travels beside the images.

A `Condition` holds class labels today; captions are to become a second field. Everything between
the data and the backbone passes the value on without looking inside, so that a new kind of
condition is made here, given by the data, and read by the backbones that understand it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

NO_LABEL = -1  # a row without a class: what classifier-free guidance drops to


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
        """The same rows, asking for nothing in particular."""
        return Condition(torch.full_like(self.label, NO_LABEL))

    def drop(self, drop: Tensor) -> "Condition":
        """The same rows, unconditional where the boolean vector `drop` is true."""
        return Condition(torch.where(drop, NO_LABEL, self.label))

    def concat(self, other: "Condition") -> "Condition":
        """These rows, then the other's: guidance asks for both in one call."""
        return Condition(torch.cat([self.label, other.label]))
