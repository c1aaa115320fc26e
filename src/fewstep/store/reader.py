"""Random access to teacher data. Only the requested records are read, not whole shards."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor

from fewstep.errors import InputError
from fewstep.store.codecs import Codec
from fewstep.store.folder import Address, Span, open_folder
from fewstep.store.manifest import Manifest, read_manifest
from fewstep.store.records import Layout
from fewstep.store.shards import decompress_record, read_offsets

Indices = Sequence[int] | Tensor | slice
Rows = npt.NDArray[np.int64]


class Reader:
    """A finished store: `len(reader)` records, decoded by `reader[indices]`.

    Opening checks the manifest and each shard's length and index; reading checks each record.
    Threads and spawned processes may share a reader; forked processes only for a local folder.

    Raises: InputError, with the file and record, if the store is unfinished or damaged.
    """

    def __init__(self, folder: Address) -> None:
        self._folder = open_folder(folder)
        self.manifest: Manifest = read_manifest(self._folder)
        self._layout = Layout(self.schema, self._folder)
        sizes = self._folder.sizes()
        offsets = read_offsets(self._folder, self.manifest.shards, sizes, self._layout.size)
        self._starts = np.concatenate([shard[:-1] for shard in offsets])
        self._stops = np.concatenate([shard[1:] for shard in offsets])

    @property
    def schema(self) -> Mapping[str, Codec]:
        """Codec of each tensor of a record."""
        return self.manifest.plan.schema

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Metadata from the writer, such as teacher, sampler, grid and seeds."""
        return self.manifest.plan.provenance

    @property
    def hash(self) -> str:
        """SHA-256 that identifies the store's content."""
        return self.manifest.hash

    def __len__(self) -> int:
        return self.manifest.plan.count

    def __getitem__(self, indices: Indices) -> dict[str, Tensor]:
        """Decode the records with these numbers.

        Returns a tensor per name, with one row per record, in the order of `indices`.
        """
        rows = self._rows(indices)
        packed = np.empty((len(rows), self._layout.size), dtype=np.uint8)
        for i, payload in enumerate(self._payloads(rows)):
            packed[i] = np.frombuffer(payload, dtype=np.uint8)
        valid = self._layout.matches(torch.from_numpy(packed))
        if not valid.all():
            record = int(rows[~valid.numpy()][0])
            raise InputError(f"{self._locate(record)} is damaged: it has another schema")
        return self._layout.unpack(torch.from_numpy(packed))

    def _rows(self, indices: Indices) -> Rows:
        if isinstance(indices, slice):
            return np.arange(len(self), dtype=np.int64)[indices]
        rows = np.asarray(indices)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise TypeError("a store is indexed by a sequence of record numbers or a slice")
        if ((rows < 0) | (rows >= len(self))).any():
            raise IndexError(f"records are numbered 0 to {len(self) - 1}")
        return rows.astype(np.int64)

    def _payloads(self, rows: Rows) -> Iterator[bytes]:
        names = [shard.file for shard in self.manifest.shards]
        shards = rows // self.manifest.plan.shard_size
        ends = self._starts[rows].tolist(), self._stops[rows].tolist()
        spans = [
            Span(names[shard], start, stop)
            for shard, start, stop in zip(shards.tolist(), *ends, strict=True)
        ]
        decompressor = zstandard.ZstdDecompressor()
        for row, frame in zip(rows.tolist(), self._folder.ranges(spans), strict=True):
            try:
                yield decompress_record(frame, self._layout.size, decompressor)
            except zstandard.ZstdError as error:
                raise InputError(f"{self._locate(row)} is damaged: {error}") from None

    def _locate(self, record: int) -> str:
        shard = self.manifest.shards[record // self.manifest.plan.shard_size]
        return f"{self._folder}/{shard.file}, record {record}"
