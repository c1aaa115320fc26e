"""One shard on disk: a zstd frame for each record, then an index, itself a skippable zstd frame.

    frame 0 | frame 1 | … | skippable header | offsets, n + 1 int64 | SHA-256 of the offsets

Frame i lies at offsets[i] … offsets[i + 1], so a record is read by seeking. Every frame carries its
content's size and checksum and depends on nothing else. The whole file is a legal zstd stream that
`zstd -t` checks (RFC 8878).
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from jaxtyping import UInt8
from torch import Tensor

from fewstep.errors import InputError
from fewstep.store.folder import Folder, Span
from fewstep.store.manifest import Shard
from fewstep.store.records import Layout

LEVEL = 2  # noise-like data: measured, other levels are no smaller, only slower
SKIPPABLE = 0x184D2A50
HEADER = struct.Struct("<II")
DIGEST = 32

Offsets = npt.NDArray[np.int64]


def shard_chunks(blocks: Iterable[UInt8[Tensor, "_ size"]]) -> Iterator[bytes]:
    """The bytes of a shard's file, a frame at a time, from its packed records."""
    # a compressor of its own: a shard's bytes may not depend on what was written before
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    offsets = [0]
    for row in (row for packed in blocks for row in packed.numpy()):
        frame = compressor.compress(row)
        offsets.append(offsets[-1] + len(frame))
        yield frame
    index = np.array(offsets, dtype="<i8").tobytes()
    yield HEADER.pack(SKIPPABLE, len(index) + DIGEST) + index + hashlib.sha256(index).digest()


def read_offsets(
    folder: Folder, shards: Sequence[Shard], sizes: Mapping[str, int]
) -> list[Offsets]:
    """Where each record's frame starts, and the last one ends, for each shard; `sizes` are those
    of the folder, listed once by whoever reads many shards.

    Raises: InputError for a shard of another length, or whose index is damaged.
    """
    spans: list[Span] = []
    for shard in shards:
        size, place = sizes.get(shard.file), f"{folder}/{shard.file}"
        if size is None:
            raise InputError(f"{place} is missing")
        if size != shard.bytes:
            raise InputError(f"{place} is damaged: it has {size} bytes, not {shard.bytes}")
        end = _end(shard)
        if end < 0:
            raise InputError(f"{place} is damaged: its index has another checksum")
        spans.append(Span(shard.file, end, size))
    tails = folder.ranges(spans)
    return [_offsets(folder, *pair) for pair in zip(shards, tails, strict=True)]


def _end(shard: Shard) -> int:
    """Where the last frame ends and the index begins."""
    return shard.bytes - HEADER.size - 8 * (shard.count + 1) - DIGEST


def _offsets(folder: Folder, shard: Shard, tail: bytes) -> Offsets:
    end, length = _end(shard), 8 * (shard.count + 1)
    header, index = tail[: HEADER.size], tail[HEADER.size : HEADER.size + length]
    digest = tail[HEADER.size + length :]
    expected = HEADER.pack(SKIPPABLE, length + DIGEST), hashlib.sha256(index).digest()
    if (header, digest) != expected:
        raise InputError(f"{folder}/{shard.file} is damaged: its index has another checksum")
    offsets = np.frombuffer(index, dtype="<i8").astype(np.int64)
    # compared, not subtracted: differences of hostile numbers would overflow
    rising = (offsets[1:] > offsets[:-1]).all()
    if offsets[0] != 0 or offsets[-1] != end or not rising:
        raise InputError(
            f"{folder}/{shard.file} is damaged: its index does not rise from 0 to {end}"
        )
    return offsets


def unframed(frame: bytes, size: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """The record in a frame. ZstdError if it is damaged, or declares another size than a record's:
    checked before anything is decompressed, so that no frame can claim more memory."""
    declared = zstandard.get_frame_parameters(frame)
    if declared.content_size != size or not declared.has_checksum:
        raise zstandard.ZstdError(f"its frame does not declare {size} bytes and a checksum")
    return decompressor.decompress(frame, allow_extra_data=False)


class Examined(NamedTuple):
    """What reading a whole shard has shown: a line for each damaged record, and its SHA-256."""

    damages: list[str]
    sha256: str


def examine(
    folder: Folder, shard: Shard, first: int, layout: Layout, sizes: Mapping[str, int]
) -> Examined:
    """Read a shard once, from end to end, and try each record, which is numbered from `first` on;
    `sizes` are those of the folder.

    Raises: InputError for a damaged index, or a file that cannot be read.
    """
    (offsets,) = read_offsets(folder, [shard], sizes)
    decompressor = zstandard.ZstdDecompressor()
    digest, damages, buffer = hashlib.sha256(), list[str](), bytearray()
    lengths, record = np.diff(offsets).tolist(), 0
    for piece in folder.pieces(shard.file):
        digest.update(piece)
        buffer += piece
        used = 0
        while record < len(lengths) and len(buffer) - used >= lengths[record]:
            frame = bytes(buffer[used : used + lengths[record]])
            used += lengths[record]
            if damage := _damage(frame, layout, decompressor):
                place = f"{folder}/{shard.file}, record {first + record}"
                damages.append(f"{place} is damaged: {damage}")
            record += 1
        del buffer[:used]
    return Examined(damages, digest.hexdigest())


def _damage(frame: bytes, layout: Layout, decompressor: zstandard.ZstdDecompressor) -> str:
    try:
        payload = unframed(frame, layout.size, decompressor)
    except zstandard.ZstdError as error:
        return str(error)
    fits = layout.fits(torch.frombuffer(bytearray(payload), dtype=torch.uint8)[None])
    return "" if fits.all() else "it has another schema"
