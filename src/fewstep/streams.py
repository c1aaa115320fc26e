"""Recorded teacher data as training streams: pairs of noise and image, or a circuit's rings."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep import store
from fewstep.condition import NO_LABEL, Condition
from fewstep.errors import InputError
from fewstep.methods.batch import PairBatch, RingBatch
from fewstep.sampling import noise_from_seeds

CACHE_BYTES = 256 << 20  # of decoded pairs: a small store is read once, not every epoch


class PairStream:
    """Pairs of noise and image from a store; noise is drawn again from its seed if not recorded.

    The decoded rows of a small store are cached in memory. Several threads may read at once.
    """

    def __init__(self, reader: store.Reader, *, classes: int | None = None) -> None:
        """`classes` is the student's number of classes: labels beyond it raise InputError when they
        are read. With None all labels are accepted.

        Raises: InputError if the store does not hold pairs.
        """
        codecs = reader.schema
        if "x0" not in codecs or not {"seed", "noise"} & set(codecs):
            raise InputError(
                f"the store holds {', '.join(sorted(codecs))}, but pairs need x0 and its seed or "
                "noise: record with `fewstep record`"
            )
        self.reader = reader
        self.classes = classes
        self.shape = codecs["x0"].shape
        number = (torch.int64, ())
        image = (torch.float32, self.shape)
        expected = {"x0": image, "noise": image, "label": number, "seed": number}
        for name, kind in expected.items():
            if name in codecs and (codecs[name].dtype, codecs[name].shape) != kind:
                raise InputError(f"the store's {name} is {codecs[name]}, but pairs have {kind}")
        self._cached_rows = torch.zeros(len(reader), dtype=torch.bool)
        size = (len(reader), *self.shape)
        self._cache: tuple[Tensor, Tensor, Tensor] | None = None
        if 2 * 4 * torch.Size(size).numel() <= CACHE_BYTES:
            label = torch.empty(len(reader), dtype=torch.int64)
            self._cache = torch.empty(size), torch.empty(size), label

    def __len__(self) -> int:
        return len(self.reader)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> PairBatch:
        """Rows `index`. Images are not augmented: a mirrored image would belong to other noise."""
        noise, x0, label = self._pairs(index)
        return PairBatch(noise.to(device), x0.to(device), _cond(label, device))

    def _pairs(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._cache is None:
            return self._read(index)
        fresh = index[~self._cached_rows[index]]
        if len(fresh):
            for column, values in zip(self._cache, self._read(fresh), strict=True):
                column[fresh] = values
            self._cached_rows[fresh] = True  # last: other threads read these rows from now on
        noise, x0, label = self._cache
        return noise[index], x0[index], label[index]

    def _read(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _ends(self.reader[index], self.shape, self.classes)


class RingStream:
    """Rings of a circuit from a store: pairs whose records also hold `rin0` and `r_chunks`.

    Rows are not cached: states are many times larger than their images.
    """

    def __init__(self, reader: store.Reader, *, classes: int | None = None) -> None:
        """`classes` is as for `PairStream`.

        Raises: InputError if the store does not hold rings.
        """
        pairs, codecs = PairStream(reader, classes=classes), reader.schema
        first, chunks = codecs.get("rin0"), codecs.get("r_chunks")
        if first is None or chunks is None or chunks.shape[1:] != first.shape:
            raise InputError(
                f"the store holds {', '.join(sorted(codecs))}, but rings need rin0 and r_chunks: "
                "record a circuit with `fewstep record RUN --sampler ring --chunks K`"
            )
        self.reader, self.classes, self.shape = reader, classes, pairs.shape
        self.chunks, self.state_shape = chunks.shape[0], first.shape
        # the circuit's hash; converted samples have none
        self.source: str | None = reader.provenance.get("teacher")

    def __len__(self) -> int:
        return len(self.reader)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> RingBatch:
        """Rows `index`. Images are not augmented."""
        records = self.reader[index]
        noise, x0, label = _ends(records, self.shape, self.classes)
        return RingBatch(
            noise.to(device),
            x0.to(device),
            records["rin0"].to(device),
            records["r_chunks"].to(device),
            _cond(label, device),
        )


def _ends(
    records: Mapping[str, Tensor], shape: tuple[int, ...], classes: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, image and label of records."""
    noise = records.get("noise")
    if noise is None:
        noise = noise_from_seeds(_checked(records["seed"], "seed", 0), shape)
    label = records.get("label", torch.full((len(noise),), NO_LABEL))
    if classes is not None:
        _checked(label, "label", NO_LABEL, classes)
    return noise, records["x0"], label


def _cond(label: Tensor, device: torch.device) -> Condition | None:
    return None if bool((label == NO_LABEL).all()) else Condition(label.to(device))


def _checked(values: Tensor, name: str, low: int, stop: int = 1 << 63) -> list[int]:
    """The values as integers.  Raises: InputError if one is below `low` or not below `stop`."""
    numbers: list[int] = values.tolist()
    for number in numbers:
        if not low <= number < stop:
            raise InputError(
                f"the store holds {name} {number}, but here it must be from {low} to {stop - 1}"
            )
    return numbers
