"""Training streams of recorded teacher data: pairs of noise and image, or rings of a circuit.

A circuit's ring is its own sampler, which encodes the noise into a hidden state and updates it step
by step. A record of a ring has the initial state, and K chunks of what the updates add to it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep import store
from fewstep.condition import NO_LABEL, Condition
from fewstep.errors import InputError
from fewstep.methods.batch import PairBatch, RingBatch
from fewstep.noise import noise_from_seeds

CACHE_BYTES = 256 << 20  # of decoded pairs, so that a small store is read once, not every epoch
FIRST_ROWS = 256  # that say whether a store has labels


class PairStream:
    """Pairs of noise and image from a store. Noise that is not recorded is drawn from its seed.

    The decoded rows of a small store are cached in memory. Several threads may read at once.
    """

    def __init__(self, reader: store.Reader, *, classes: int | None = None) -> None:
        """`classes` is the student's number of classes: reading a label beyond it raises
        InputError. None allows all labels.

        Raises: InputError if the store does not hold pairs.
        """
        codecs = reader.schema
        if "x0" not in codecs or not {"seed", "noise"} & set(codecs):
            raise InputError(
                f"the store holds {', '.join(sorted(codecs))}, but pairs need x0, and seed or "
                "noise: record them with `fewstep record`"
            )
        self.reader = reader
        self.classes = classes
        self.shape = codecs["x0"].shape
        number = (torch.int64, ())
        image = (torch.float32, self.shape)
        expected = {"x0": image, "noise": image, "label": number, "seed": number}
        for name, kind in expected.items():
            if name in codecs and (codecs[name].dtype, codecs[name].shape) != kind:
                raise InputError(
                    f"the store's {name} is {codecs[name]}, but must have dtype {kind[0]} and "
                    f"shape {kind[1]}"
                )
        self._cached_rows = torch.zeros(len(reader), dtype=torch.bool)
        size = (len(reader), *self.shape)
        self._cache: tuple[Tensor, Tensor, Tensor] | None = None
        if 2 * 4 * torch.Size(size).numel() <= CACHE_BYTES:
            label = torch.empty(len(reader), dtype=torch.int64)
            self._cache = torch.empty(size), torch.empty(size), label

    def __len__(self) -> int:
        return len(self.reader)

    def has_labels(self) -> bool:
        """Whether the records have labels, by the first of them."""
        return _has_labels(self.reader)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> PairBatch:
        """The rows selected by `index`.

        Images are not augmented, because a mirrored image belongs to other noise.
        """
        noise, x0, label = self._pairs(index)
        return PairBatch(noise.to(device), x0.to(device), _cond(label, device))

    def _pairs(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self._cache is None:
            return self._read(index)
        fresh = index[~self._cached_rows[index]]
        if len(fresh):
            for column, values in zip(self._cache, self._read(fresh), strict=True):
                column[fresh] = values
            self._cached_rows[fresh] = True  # last, because other threads read these rows then
        noise, x0, label = self._cache
        return noise[index], x0[index], label[index]

    def _read(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _noise_image_label(self.reader[index], self.shape, self.classes)


class RingStream:
    """A circuit's rings from a store: pairs with an initial state `rin0` and chunks `r_chunks`.

    Rows are not cached, because states are many times larger than their images.
    """

    def __init__(self, reader: store.Reader, *, classes: int | None = None) -> None:
        """`classes` has the same meaning as in `PairStream`.

        Raises: InputError if the store does not hold rings.
        """
        pairs, codecs = PairStream(reader, classes=classes), reader.schema
        state, chunks = codecs.get("rin0"), codecs.get("r_chunks")
        if state is None or chunks is None or chunks.shape[1:] != state.shape:
            raise InputError(
                f"the store holds {', '.join(sorted(codecs))}, but rings need rin0 and r_chunks: "
                "record a circuit with `fewstep record RUN --sampler ring --chunks K`"
            )
        self.reader, self.classes, self.shape = reader, classes, pairs.shape
        self.chunks, self.state_shape = chunks.shape[0], state.shape

    def __len__(self) -> int:
        return len(self.reader)

    def has_labels(self) -> bool:
        """Whether the records have labels, by the first of them."""
        return _has_labels(self.reader)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> RingBatch:
        """The rows selected by `index`. Images are not augmented."""
        records = self.reader[index]
        noise, x0, label = _noise_image_label(records, self.shape, self.classes)
        return RingBatch(
            noise.to(device),
            x0.to(device),
            records["rin0"].to(device),
            records["r_chunks"].to(device),
            _cond(label, device),
        )


def _has_labels(reader: store.Reader) -> bool:
    """Whether any of the first records has a label."""
    if "label" not in reader.schema:
        return False
    first = reader[torch.arange(min(len(reader), FIRST_ROWS))]
    return bool((first["label"] != NO_LABEL).any())


def _noise_image_label(
    records: Mapping[str, Tensor], shape: tuple[int, ...], classes: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, image and label of records, which all streams need."""
    noise = records.get("noise")
    if noise is None:
        noise = noise_from_seeds(_check_range(records["seed"], "seed", 0), shape)
    label = records.get("label", torch.full((len(noise),), NO_LABEL))
    if classes is not None:
        _check_range(label, "label", NO_LABEL, classes)
    return noise, records["x0"], label


def _cond(label: Tensor, device: torch.device) -> Condition | None:
    return None if bool((label == NO_LABEL).all()) else Condition(label.to(device))


def _check_range(values: Tensor, name: str, low: int, stop: int = 1 << 63) -> list[int]:
    """The values as integers.  Raises: InputError if one is below `low` or not below `stop`."""
    numbers: list[int] = values.tolist()
    for number in numbers:
        if not low <= number < stop:
            raise InputError(
                f"the store has a record with {name} {number}; it must be from {low} to {stop - 1}"
            )
    return numbers
