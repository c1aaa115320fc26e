"""Recorded teacher data as training streams: noise and image, or a circuit's latents besides."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep import store
from fewstep.condition import NO_LABEL, Condition
from fewstep.errors import InputError
from fewstep.methods.base import PairBatch, RingBatch
from fewstep.sampling import noise_from_seeds

KEPT = 256 << 20  # bytes of decoded pairs to keep: a small store is read once, not every epoch


class PairStream:
    """A store's pairs; noise comes back from the seeds, where it was not recorded itself.

    Rows of a store that is small when decoded stay in memory once they were read. Several threads
    may read at once.
    """

    def __init__(self, reader: store.Reader, *, classes: int | None = None) -> None:
        """`classes` of the student: other labels are refused when they are read; None: any go.

        Raises: InputError for a store of anything but pairs.
        """
        codecs = reader.schema
        if "x0" not in codecs or not {"seed", "noise"} & set(codecs):
            raise InputError(
                f"the store holds {', '.join(sorted(codecs))}: no pairs, which are x0 and its seed "
                "or noise"
            )
        self.reader = reader
        self.classes = classes
        self.shape = codecs["x0"].shape
        number = (torch.int64, ())
        image = (torch.float32, self.shape)
        for name, wanted in {"x0": image, "noise": image, "label": number, "seed": number}.items():
            if name in codecs and (codecs[name].dtype, codecs[name].shape) != wanted:
                raise InputError(f"the store's {name} is {codecs[name]}; pairs have {wanted}")
        self._there = torch.zeros(len(reader), dtype=torch.bool)
        whole = (len(reader), *self.shape)
        small = 2 * 4 * torch.Size(whole).numel() <= KEPT
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None
        if small:
            label = torch.empty(len(reader), dtype=torch.int64)
            self._kept = torch.empty(whole), torch.empty(whole), label

    def __len__(self) -> int:
        return len(self.reader)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> PairBatch:
        """Rows `index`; nothing is augmented, since a mirrored image has other noise."""
        noise, x0, label = self._pairs(index)
        return PairBatch(noise.to(device), x0.to(device), _cond(label, device))

    def _pairs(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._kept is None:
            return self._read(index)
        fresh = index[~self._there[index]]
        if len(fresh):
            for kept, read in zip(self._kept, self._read(fresh), strict=True):
                kept[fresh] = read
            self._there[fresh] = True  # last: another thread may look for them now
        noise, x0, label = self._kept
        return noise[index], x0[index], label[index]

    def _read(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _ends(self.reader[index], self.shape, self.classes)


class RingStream:
    """A store of a circuit's rings: pairs whose records also hold `rin0` and `r_chunks`.

    Read anew every epoch: latents are many times larger than their images.
    """

    def __init__(self, reader: store.Reader, *, classes: int | None = None) -> None:
        """`classes` of the student, as for `PairStream`.

        Raises: InputError for a store of anything but rings.
        """
        pairs, codecs = PairStream(reader, classes=classes), reader.schema
        first, chunks = codecs.get("rin0"), codecs.get("r_chunks")
        if first is None or chunks is None or chunks.shape[1:] != first.shape:
            raise InputError(
                f"the store holds {', '.join(sorted(codecs))}: no latents, which `fewstep record "
                "RUN --chunks K` adds to the pairs of a circuit"
            )
        self.reader, self.classes, self.shape = reader, classes, pairs.shape
        self.chunks, *self.latent = chunks.shape
        # whose latents they are; converted samples do not tell
        self.source: str | None = reader.provenance.get("teacher")

    def __len__(self) -> int:
        return len(self.reader)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> RingBatch:
        """Rows `index`; nothing is augmented."""
        found = self.reader[index]
        noise, x0, label = _ends(found, self.shape, self.classes)
        return RingBatch(
            noise.to(device),
            x0.to(device),
            found["rin0"].to(device),
            found["r_chunks"].to(device),
            _cond(label, device),
        )


def _ends(
    found: Mapping[str, Tensor], shape: tuple[int, ...], classes: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, image and label of records."""
    noise = found.get("noise")
    if noise is None:
        noise = noise_from_seeds(_within(found["seed"], "seed", 0), shape)
    label = found.get("label", torch.full((len(noise),), NO_LABEL))
    if classes is not None:
        _within(label, "label", NO_LABEL, classes)
    return noise, found["x0"], label


def _cond(label: Tensor, device: torch.device) -> Condition | None:
    return None if bool((label == NO_LABEL).all()) else Condition(label.to(device))


def _within(values: Tensor, what: str, low: int, stop: int = 1 << 63) -> list[int]:
    """The numbers, each from `low` up and below `stop`: a network would not ask."""
    numbers: list[int] = values.tolist()
    for number in numbers:
        if not low <= number < stop:
            raise InputError(f"the store holds {what} {number}; here they are {low} to {stop - 1}")
    return numbers
