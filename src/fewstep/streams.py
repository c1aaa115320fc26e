"""Training streams of recorded teacher data: pairs of noise and image, or rings of a circuit.

A circuit's ring is its own sampler, which encodes the noise into a hidden state and updates it step
by step. A record of a ring has the initial state, and K chunks of what the updates add to it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep import store
from fewstep.condition import NO_LABEL, Condition
from fewstep.errors import InputError
from fewstep.methods.batch import PairBatch, RingBatch
from fewstep.noise import noise_from_seeds
from fewstep.text.base import TextEncoder
from fewstep.text.captions import CaptionTable

CACHE_BYTES = 256 << 20  # of decoded pairs, so that a small store is read once, not every epoch
FIRST_ROWS = 256  # that say whether a store has labels


class Columns(NamedTuple):
    """What all streams read of a record, one row each."""

    noise: Tensor
    x0: Tensor
    label: Tensor
    prompt: Tensor
    """Number of the prompt in the store's list; 0 if it has none."""


class Conditions:
    """Conditions of a store's records, from their labels and the numbers of their prompts."""

    def __init__(
        self, reader: store.Reader, classes: int | None, encoder: TextEncoder | None
    ) -> None:
        """Raises: InputError if the store's list of prompts is damaged."""
        self.reader = reader
        self.classes = classes
        self._prompts = _prompts(reader)
        lists = [[prompt] for prompt in self._prompts]
        self._captions = CaptionTable(encoder, lists) if encoder and lists else None

    def has_labels(self) -> bool:
        """Whether any of the first records has a label."""
        if "label" not in self.reader.schema:
            return False
        first = self.reader[torch.arange(min(len(self.reader), FIRST_ROWS))]
        return bool((first["label"] != NO_LABEL).any())

    def has_prompts(self) -> bool:
        """Whether the records have prompts."""
        return bool(self._prompts)

    def check(self, columns: Columns) -> Columns:
        """The same columns.  Raises: InputError for a label or prompt out of range."""
        if self.classes is not None:
            _check_range(columns.label, "label", NO_LABEL, self.classes)
        _check_range(columns.prompt, "prompt", 0, max(1, len(self._prompts)))
        return columns

    def of(self, columns: Columns, device: torch.device) -> Condition | None:
        """The condition of each row; None if no row has any."""
        has_labels = bool((columns.label != NO_LABEL).any())
        label = columns.label if has_labels else None
        rows = columns.prompt
        text = self._captions and self._captions.draw(rows, torch.zeros(len(rows)))
        if label is None and text is None:
            return None
        return Condition(label, text=text).to(device)


class PairStream:
    """Pairs of noise and image from a store. Noise that is not recorded is drawn from its seed.

    The decoded rows of a small store are cached in memory. Several threads may read at once.
    """

    def __init__(
        self,
        reader: store.Reader,
        *,
        classes: int | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        """`classes` is the student's number of classes: reading a label beyond it raises
        InputError. None allows all labels. `encoder` is the student's text encoder; without one,
        prompts are not read.

        Raises: InputError if the store does not hold pairs.
        """
        codecs = reader.schema
        if "x0" not in codecs or not {"seed", "noise"} & set(codecs):
            raise InputError(
                f"the store holds {', '.join(sorted(codecs))}, but pairs need x0, and seed or "
                "noise: record them with `fewstep record`"
            )
        self.reader = reader
        self.conditions = Conditions(reader, classes, encoder)
        self.shape = codecs["x0"].shape
        number = (torch.int64, ())
        image = (torch.float32, self.shape)
        expected = {"x0": image, "noise": image, "label": number, "prompt": number, "seed": number}
        for name, kind in expected.items():
            if name in codecs and (codecs[name].dtype, codecs[name].shape) != kind:
                raise InputError(
                    f"the store's {name} is {codecs[name]}, but must have dtype {kind[0]} and "
                    f"shape {kind[1]}"
                )
        self._cached_rows = torch.zeros(len(reader), dtype=torch.bool)
        size = (len(reader), *self.shape)
        self._cache: Columns | None = None
        if 2 * 4 * torch.Size(size).numel() <= CACHE_BYTES:
            label, prompt = torch.empty(2, len(reader), dtype=torch.int64)
            self._cache = Columns(torch.empty(size), torch.empty(size), label, prompt)

    def __len__(self) -> int:
        return len(self.reader)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> PairBatch:
        """The rows selected by `index`.

        Images are not augmented, because a mirrored image belongs to other noise.
        """
        columns = self._columns(index)
        cond = self.conditions.of(columns, device)
        return PairBatch(columns.noise.to(device), columns.x0.to(device), cond)

    def _columns(self, index: Tensor) -> Columns:
        if self._cache is None:
            return self._read(index)
        fresh = index[~self._cached_rows[index]]
        if len(fresh):
            for column, values in zip(self._cache, self._read(fresh), strict=True):
                column[fresh] = values
            self._cached_rows[fresh] = True  # last, because other threads read these rows then
        return Columns(*(column[index] for column in self._cache))

    def _read(self, index: Tensor) -> Columns:
        return self.conditions.check(_columns(self.reader[index], self.shape))


class RingStream:
    """A circuit's rings from a store: pairs with an initial state `rin0` and chunks `r_chunks`.

    Rows are not cached, because states are many times larger than their images.
    """

    def __init__(
        self,
        reader: store.Reader,
        *,
        classes: int | None = None,
        encoder: TextEncoder | None = None,
    ) -> None:
        """`classes` and `encoder` have the same meaning as in `PairStream`.

        Raises: InputError if the store does not hold rings.
        """
        pairs, codecs = PairStream(reader, classes=classes, encoder=encoder), reader.schema
        state, chunks = codecs.get("rin0"), codecs.get("r_chunks")
        if state is None or chunks is None or chunks.shape[1:] != state.shape:
            raise InputError(
                f"the store holds {', '.join(sorted(codecs))}, but rings need rin0 and r_chunks: "
                "record a circuit with `fewstep record RUN --sampler ring --chunks K`"
            )
        self.reader, self.conditions, self.shape = reader, pairs.conditions, pairs.shape
        self.chunks, self.state_shape = chunks.shape[0], state.shape

    def __len__(self) -> int:
        return len(self.reader)

    def rows(self, index: Tensor, coin: Tensor, device: torch.device) -> RingBatch:
        """The rows selected by `index`. Images are not augmented."""
        records = self.reader[index]
        columns = self.conditions.check(_columns(records, self.shape))
        return RingBatch(
            columns.noise.to(device),
            columns.x0.to(device),
            records["rin0"].to(device),
            records["r_chunks"].to(device),
            self.conditions.of(columns, device),
        )


def _columns(records: Mapping[str, Tensor], shape: tuple[int, ...]) -> Columns:
    noise = records.get("noise")
    if noise is None:
        noise = noise_from_seeds(_check_range(records["seed"], "seed", 0), shape)
    label = records.get("label", torch.full((len(noise),), NO_LABEL))
    prompt = records.get("prompt", torch.zeros(len(noise), dtype=torch.int64))
    return Columns(noise, records["x0"], label, prompt)


def _prompts(reader: store.Reader) -> list[str]:
    """The store's list of prompts, which its records number; empty for one without prompts."""
    if "prompt" not in reader.schema:
        return []
    prompts: Any = reader.provenance.get("prompts")
    if not (isinstance(prompts, list) and prompts and all(isinstance(p, str) for p in prompts)):
        raise InputError(
            "the store's records number prompts that its provenance does not list: record it with "
            "`fewstep record`"
        )
    return prompts


def _check_range(values: Tensor, name: str, low: int, stop: int = 1 << 63) -> list[int]:
    """The values as integers.  Raises: InputError if one is below `low` or not below `stop`."""
    numbers: list[int] = values.tolist()
    for number in numbers:
        if not low <= number < stop:
            raise InputError(
                f"the store has a record with {name} {number}; it must be from {low} to {stop - 1}"
            )
    return numbers
