"""Read teacher data at random, by seeking: no shard is ever loaded whole."""

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
from fewstep.store.shards import read_offsets, unframed

Indices = Sequence[int] | Tensor | slice
Rows = npt.NDArray[np.int64]


class Reader:
    """A finished store. Opening checks the manifest, every shard's length and its index; reading
    checks each record. What is unfinished or damaged is an `InputError` that names the place.

    Threads may share it; spawned processes too, and forked ones where the folder is a local one.
    """

    def __init__(self, folder: Address) -> None:
        self._folder = open_folder(folder)
        self.manifest: Manifest = read_manifest(self._folder)
        self._layout = Layout(self.schema)
        offsets = read_offsets(self._folder, self.manifest.shards, self._folder.sizes())
        self._starts = np.concatenate([one[:-1] for one in offsets])
        self._stops = np.concatenate([one[1:] for one in offsets])

    @property
    def schema(self) -> Mapping[str, Codec]:
        return self.manifest.plan.schema

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the writer told of the teacher, its sampler, grid and seeds."""
        return self.manifest.plan.provenance

    @property
    def hash(self) -> str:
        """The SHA-256 in the manifest: it identifies the content, shards included."""
        return self.manifest.hash

    def __len__(self) -> int:
        return self.manifest.plan.count

    def __getitem__(self, indices: Indices) -> dict[str, Tensor]:
        """The records of these numbers, in this order, decoded: a tensor a name, one row each."""
        rows = self._rows(indices)
        packed = np.empty((len(rows), self._layout.size), dtype=np.uint8)
        for place, payload in enumerate(self._payloads(rows)):
            packed[place] = np.frombuffer(payload, dtype=np.uint8)
        fits = self._layout.fits(torch.from_numpy(packed))
        if not fits.all():
            record = int(rows[~fits.numpy()][0])
            raise InputError(f"{self._place(record)} is damaged: it has another schema")
        return self._layout.unpack(torch.from_numpy(packed))

    def _rows(self, indices: Indices) -> Rows:
        if isinstance(indices, slice):
            return np.arange(len(self), dtype=np.int64)[indices]
        rows = np.asarray(indices)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise TypeError("a store is read by a sequence of record numbers or a slice")
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
                yield unframed(frame, self._layout.size, decompressor)
            except zstandard.ZstdError as error:
                raise InputError(f"{self._place(row)} is damaged: {error}") from None

    def _place(self, record: int) -> str:
        shard = self.manifest.shards[record // self.manifest.plan.shard_size]
        return f"{self._folder}/{shard.file}, record {record}"
