"""Read teacher data at random, by seeking: no shard is ever loaded whole."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor

from fewstep.errors import InputError
from fewstep.store.codecs import Codec
from fewstep.store.folder import Folder
from fewstep.store.manifest import Manifest, read_manifest
from fewstep.store.records import Layout
from fewstep.store.shards import read_offsets, unframed

Indices = Sequence[int] | Tensor | slice
Rows = npt.NDArray[np.int64]


class Reader:
    """A finished store. Opening checks the manifest, every shard's length and its index; reading
    checks each record. What is unfinished or damaged is an `InputError` that names the place.

    Threads and forked or spawned processes may share it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Folder(folder)
        self.manifest: Manifest = read_manifest(self._folder)
        self._layout = Layout(self.schema)
        self._offsets = [read_offsets(self._folder, shard) for shard in self.manifest.shards]

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
        shards = rows // self.manifest.plan.shard_size
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            payloads = self._payloads(shard, rows[places])
            for place, payload in zip(places.tolist(), payloads, strict=True):
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

    def _payloads(self, shard: int, rows: Rows) -> Iterator[bytes]:
        offsets = self._offsets[shard]
        within = rows - shard * self.manifest.plan.shard_size
        spans = zip(offsets[within].tolist(), offsets[within + 1].tolist(), strict=True)
        decompressor = zstandard.ZstdDecompressor()
        frames = self._folder.ranges(self.manifest.shards[shard].file, spans)
        for row, frame in zip(rows.tolist(), frames, strict=True):
            try:
                yield unframed(frame, self._layout.size, decompressor)
            except zstandard.ZstdError as error:
                raise InputError(f"{self._place(row)} is damaged: {error}") from None

    def _place(self, record: int) -> str:
        shard = self.manifest.shards[record // self.manifest.plan.shard_size]
        return f"{self._folder}/{shard.file}, record {record}"
