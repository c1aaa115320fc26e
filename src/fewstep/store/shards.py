"""One shard on disk: a zstd frame for each record, then an index, itself a skippable zstd frame.

    frame 0 | frame 1 | … | skippable header | offsets, n + 1 int64 | SHA-256 of the offsets

Frame i lies at offsets[i] … offsets[i + 1], so a record is read by seeking. Every frame carries its
content's size and checksum and depends on nothing else. The whole file is a legal zstd stream that
`zstd -t` checks (RFC 8878).
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from jaxtyping import UInt8
from torch import Tensor

from fewstep.errors import InputError
from fewstep.store.folder import Folder
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


def read_offsets(folder: Folder, shard: Shard) -> Offsets:
    """Where each record's frame starts, and the last one ends; `InputError` if that is damaged."""
    size, length = folder.size(shard.file), 8 * (shard.count + 1)
    if size != shard.bytes:
        raise InputError(
            f"{folder}/{shard.file} is damaged: it has {size} bytes, not {shard.bytes}"
        )
    end = size - HEADER.size - length - DIGEST
    (tail,) = folder.ranges(shard.file, [(max(end, 0), size)])
    header, index = tail[: HEADER.size], tail[HEADER.size : HEADER.size + length]
    digest = tail[HEADER.size + length :]
    expected = HEADER.pack(SKIPPABLE, length + DIGEST), hashlib.sha256(index).digest()
    if end < 0 or (header, digest) != expected:
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


def examine(folder: Folder, shard: Shard, first: int, layout: Layout) -> Iterator[str]:
    """Read every record of a shard, one at a time, and tell which are damaged, a line each. A
    damaged index, or a file that cannot be read, raises `InputError`."""
    offsets = read_offsets(folder, shard)
    decompressor = zstandard.ZstdDecompressor()
    spans = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    for record, frame in enumerate(folder.ranges(shard.file, spans), start=first):
        try:
            payload = unframed(frame, layout.size, decompressor)
        except zstandard.ZstdError as error:
            yield f"{folder}/{shard.file}, record {record} is damaged: {error}"
            continue
        if not layout.fits(torch.frombuffer(bytearray(payload), dtype=torch.uint8)[None]).all():
            yield f"{folder}/{shard.file}, record {record} is damaged: it has another schema"


def sha256(folder: Folder, file: str) -> str:
    digest = hashlib.sha256()
    for piece in folder.pieces(file):
        digest.update(piece)
    return digest.hexdigest()
