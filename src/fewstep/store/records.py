"""Records as bytes: named tensors in the safetensors format, many rows at once.

All records of a store have the same schema and hence the same safetensors header. Rows are
therefore packed and unpacked by copying columns of a matrix of bytes. The header is written here
instead of by the safetensors library, so that its bytes do not depend on a version; the library can
read it.

Source: https://huggingface.co/docs/safetensors (format).
"""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from fewstep.errors import InputError
from fewstep.store.codecs import DTYPE_NAMES, Codec, Shape

MAX_BYTES = 1 << 30  # of a record: limits the memory that a malicious manifest can claim


class Part(NamedTuple):
    """One stored tensor, and its range of bytes in the record."""

    owner: str
    suffix: str
    dtype: torch.dtype
    shape: Shape
    start: int
    stop: int


class Layout:
    """Byte offsets of a record's tensors; `size` is the length of a record, uncompressed.

    Raises: InputError for records of more than 1 GiB; `name` is the store in its message.
    """

    def __init__(self, schema: Mapping[str, Codec], name: object = "the store") -> None:
        self.schema = dict(schema)
        stored = [
            (owner, suffix, dtype, shape)
            for owner, codec in schema.items()
            for suffix, (dtype, shape) in codec.parts.items()
        ]
        # with the widest dtypes first every tensor is aligned, as in safetensors
        stored.sort(key=lambda part: (-part[2].itemsize, part[0] + part[1]))
        self.header = _header(stored)
        self.parts: list[Part] = []
        start = len(self.header)
        for owner, suffix, dtype, shape in stored:
            stop = start + math.prod(shape) * dtype.itemsize
            self.parts.append(Part(owner, suffix, dtype, shape, start, stop))
            start = stop
        self.size = start
        if self.size > MAX_BYTES:
            raise InputError(
                f"a record of {name} has {self.size} bytes; at most {MAX_BYTES} are allowed"
            )

    def check(self, records: Mapping[str, Tensor]) -> int:
        """Number of rows.  Raises: InputError if the tensors are not those of the schema."""
        if set(records) != set(self.schema):
            raise InputError(
                f"the records hold {', '.join(sorted(records))}; the store's schema has "
                f"{', '.join(sorted(self.schema))}"
            )
        for name, codec in self.schema.items():
            values = records[name]
            if values.dtype != codec.dtype or values.shape[1:] != codec.shape:
                raise InputError(
                    f"{name!r} has dtype {values.dtype} and row shape {tuple(values.shape[1:])}; "
                    f"the store's schema has {codec.dtype} and {codec.shape}"
                )
        counts = sorted({len(values) for values in records.values()})
        if len(counts) != 1:
            raise InputError(f"the tensors have {counts} rows; all must have the same number")
        return counts[0]

    def pack(self, records: Mapping[str, Tensor]) -> UInt8[Tensor, "rows size"]:
        """Encode records that `check` accepts into the bytes of each row."""
        rows = len(next(iter(records.values())))
        encoded = {name: self._encode(name, records[name]) for name in self.schema}
        packed = torch.empty(rows, self.size, dtype=torch.uint8)
        packed[:, : len(self.header)] = self._header_row()
        for part in self.parts:
            values = encoded[part.owner][part.suffix].contiguous()
            columns = values.reshape(rows, math.prod(part.shape)).view(torch.uint8)
            packed[:, part.start : part.stop] = columns
        return packed

    def unpack(self, packed: UInt8[Tensor, "rows size"]) -> dict[str, Tensor]:
        """Decode rows that `matches` accepts."""
        stored: dict[str, dict[str, Tensor]] = {name: {} for name in self.schema}
        for part in self.parts:
            columns = packed[:, part.start : part.stop].clone(memory_format=torch.contiguous_format)
            values = columns.view(part.dtype).reshape(len(packed), *part.shape)
            stored[part.owner][part.suffix] = values
        return {name: codec.decode(stored[name]) for name, codec in self.schema.items()}

    def matches(self, packed: UInt8[Tensor, "rows size"]) -> Bool[Tensor, " rows"]:
        """Which rows have the header of this schema."""
        return (packed[:, : len(self.header)] == self._header_row()).all(dim=1)

    def _header_row(self) -> UInt8[Tensor, " bytes"]:
        return torch.frombuffer(bytearray(self.header), dtype=torch.uint8)

    def _encode(self, name: str, values: Tensor) -> dict[str, Tensor]:
        try:
            return self.schema[name].encode(values.detach().cpu())
        except InputError as error:
            raise InputError(f"{name!r} cannot be recorded: {error}") from None


def _header(tensors: list[tuple[str, str, torch.dtype, Shape]]) -> bytes:
    """The safetensors header: its length in eight bytes, then JSON, padded to align the data."""
    entries: dict[str, object] = {}
    start = 0
    for owner, suffix, dtype, shape in tensors:
        stop = start + math.prod(shape) * dtype.itemsize
        entries[owner + suffix] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
