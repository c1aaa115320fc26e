"""Records as bytes: named tensors in the safetensors format, many rows at once.

All records of a store have the same schema, so they share one safetensors header, and packing or
unpacking rows is moving columns of a byte matrix. The header is written here rather than by the
safetensors library, so that its bytes cannot change with a version; the library reads them.

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

MOST = 1 << 30  # bytes of a record: what a hostile manifest can make a reader set aside


class Part(NamedTuple):
    """One stored tensor of a record and the bytes it takes, counted from the record's first."""

    owner: str
    suffix: str
    dtype: torch.dtype
    shape: Shape
    start: int
    stop: int


class Layout:
    """Where every tensor of a record lies. `size` is the bytes of one record, uncompressed: at most
    a gibibyte, or it is an `InputError`."""

    def __init__(self, schema: Mapping[str, Codec]) -> None:
        self.schema = dict(schema)
        wanted = [
            (owner, suffix, dtype, shape)
            for owner, codec in schema.items()
            for suffix, (dtype, shape) in codec.parts.items()
        ]
        # wide types first keeps every tensor aligned, as safetensors wants it
        wanted.sort(key=lambda part: (-part[2].itemsize, part[0] + part[1]))
        self.header = _header(wanted)
        self.parts: list[Part] = []
        start = len(self.header)
        for owner, suffix, dtype, shape in wanted:
            stop = start + math.prod(shape) * dtype.itemsize
            self.parts.append(Part(owner, suffix, dtype, shape, start, stop))
            start = stop
        self.size = start
        if self.size > MOST:
            raise InputError(f"a record of {self.size} bytes; at most {MOST} are allowed")

    def check(self, records: Mapping[str, Tensor]) -> int:
        """How many rows the tensors have; `InputError` unless they are the schema's."""
        if set(records) != set(self.schema):
            raise InputError(
                f"the records hold {', '.join(sorted(records))}; the store's schema asks for "
                f"{', '.join(sorted(self.schema))}"
            )
        for name, codec in self.schema.items():
            values = records[name]
            if values.dtype != codec.dtype or values.shape[1:] != codec.shape:
                raise InputError(
                    f"{name!r} is {values.dtype} of row shape {tuple(values.shape[1:])}; the "
                    f"store's schema says {codec.dtype} of {codec.shape}"
                )
        counts = sorted({len(values) for values in records.values()})
        if len(counts) != 1:
            raise InputError(f"the tensors have {counts} rows; they need as many each")
        return counts[0]

    def pack(self, records: Mapping[str, Tensor]) -> UInt8[Tensor, "rows size"]:
        """The bytes of each row of records that `check` accepts."""
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
        """The decoded tensors of rows that `fits` accepts."""
        stored: dict[str, dict[str, Tensor]] = {name: {} for name in self.schema}
        for part in self.parts:
            columns = packed[:, part.start : part.stop].clone(memory_format=torch.contiguous_format)
            values = columns.view(part.dtype).reshape(len(packed), *part.shape)
            stored[part.owner][part.suffix] = values
        return {name: codec.decode(stored[name]) for name, codec in self.schema.items()}

    def fits(self, packed: UInt8[Tensor, "rows size"]) -> Bool[Tensor, " rows"]:
        """Which rows hold this schema's tensors: their header is the same."""
        return (packed[:, : len(self.header)] == self._header_row()).all(dim=1)

    def _header_row(self) -> UInt8[Tensor, " bytes"]:
        return torch.frombuffer(bytearray(self.header), dtype=torch.uint8)

    def _encode(self, name: str, values: Tensor) -> dict[str, Tensor]:
        try:
            return self.schema[name].encode(values.detach().cpu())
        except InputError as error:
            raise InputError(f"{name!r} cannot be recorded: {error}") from None


def _header(wanted: list[tuple[str, str, torch.dtype, Shape]]) -> bytes:
    """safetensors: eight bytes of length, then JSON, here padded so that the data are aligned."""
    entries: dict[str, object] = {}
    start = 0
    for owner, suffix, dtype, shape in wanted:
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
