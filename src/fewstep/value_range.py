"""How far the values of images exceed [-1, 1], in which networks are trained."""

from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from fewstep import distributed, store
from fewstep.files import TEMPORARY
from fewstep.formatting import number, percent
from fewstep.store.manifest import MANIFEST, PLAN, read_manifest, read_plan

LIMIT = 1.5
"""Values of an image beyond ±LIMIT are out of range.

All networks exceed ±1 a little, where images are black or white: of a teacher of digits that was
trained for 100 steps, 12 % of the values are beyond ±1.1 and 0.3 % beyond ±1.5. Of a weak network
that predicts noise and samples without a clip, 5 to 30 % are beyond ±1.5, up to 90.
"""
MAX_SHARE = 0.01
"""Largest share of values out of range that `fewstep record` accepts."""


@dataclass(frozen=True)
class ValueRange:
    """The number of values of images, how many are out of range, and the largest absolute value."""

    values: int = 0
    outside: int = 0
    largest: float = 0.0

    @classmethod
    def of(cls, images: Tensor) -> "ValueRange":
        """The range of a batch of images (b, c, h, w); empty for points (b, d)."""
        if images.ndim != 4:
            return cls()
        size = images.detach().abs()
        return cls(size.numel(), int((size > LIMIT).sum()), float(size.max()))

    def __add__(self, other: "ValueRange") -> "ValueRange":
        largest = max(self.largest, other.largest)
        return ValueRange(self.values + other.values, self.outside + other.outside, largest)

    @property
    def share(self) -> float:
        """Share of the values that are out of range, 0 to 1."""
        return self.outside / max(self.values, 1)

    def text(self, noun: str) -> str:
        """A phrase such as "5.3 % of the values of NOUN are beyond ±1.5 (largest |x| 33.1)"."""
        share, size = percent(self.share), number(self.largest)
        return f"{share} of the values of {noun} are beyond ±{LIMIT:g} (largest |x| {size})"


def stored_range(folder: store.Address) -> ValueRange | None:
    """The range in the provenance of a store, finished or not; None for a new store.

    Empty for a folder with other files, which a writer refuses.
    """
    files = store.open_folder(folder)
    names = files.sizes()
    if MANIFEST in names or PLAN in names:
        plan = read_manifest(files).plan if MANIFEST in names else read_plan(files)
        return ValueRange(**plan.provenance.get("range", {}))
    return ValueRange() if any(not name.endswith(TEMPORARY) for name in names) else None


def sum_ranges(values: ValueRange, device: torch.device) -> ValueRange:
    """The range of the images of all ranks."""
    rank, ranks = distributed.world()
    table = torch.zeros(ranks, 3, dtype=torch.float64, device=device)
    table[rank] = torch.tensor(astuple(values), dtype=torch.float64)
    counts, outside, largest = distributed.sum_numbers(table).cpu().unbind(1)
    return ValueRange(int(counts.sum()), int(outside.sum()), float(largest.max()))
