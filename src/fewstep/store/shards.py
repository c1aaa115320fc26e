"""One shard on disk: a zstd frame for each record, then an index, itself a skippable zstd frame.

    frame 0 | frame 1 | … | skippable header | offsets, n + 1 int64 | SHA-256 of the offsets

Frame i is at offsets[i] … offsets[i + 1], so that a record is read by seeking. Frames are
independent, with the size and checksum of their content. The file is a valid zstd stream, which
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

LEVEL = 2  # measured on noise-like data: higher levels are slower and no smaller
SKIPPABLE = 0x184D2A50
HEADER = struct.Struct("<II")
DIGEST = 32
MAX_RATIO, SLACK = 1000, 1 << 26
"""Largest ratio of compression, of records that have more than SLACK bytes together."""
MAX_SHARD = 1 << 24
"""Largest number of records in a shard: bounds its index to 128 MiB."""
GROUP = 1 << 26
"""Bytes of indices that are read at once."""

Offsets = npt.NDArray[np.int64]


def shard_chunks(blocks: Iterable[UInt8[Tensor, "_ size"]]) -> Iterator[bytes]:
    """Bytes of a shard's file, frame by frame, from packed records."""
    # a new compressor: a shard's bytes must not depend on what was written before
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    offsets = [0]
    for row in (row for packed in blocks for row in packed.numpy()):
        frame = compressor.compress(row)
        offsets.append(offsets[-1] + len(frame))
        yield frame
    index = np.array(offsets, dtype="<i8").tobytes()
    yield HEADER.pack(SKIPPABLE, len(index) + DIGEST) + index + hashlib.sha256(index).digest()


def read_offsets(
    folder: Folder, shards: Sequence[Shard], sizes: Mapping[str, int], record: int
) -> list[Offsets]:
    """For each shard, the offset of each record's frame and of the end of the last frame.

    `sizes` are the lengths of the folder's files, and `record` is that of a record.  Raises:
    InputError for a shard that is missing, of another length, or whose index is damaged, and for
    records that no compression fits into their files.
    """
    spans: list[Span] = []
    for shard in shards:
        size, path = sizes.get(shard.file), f"{folder}/{shard.file}"
        if size is None:
            raise InputError(f"{path} is missing")
        if size != shard.bytes:
            raise InputError(f"{path} is damaged: it has {size} bytes, not {shard.bytes}")
        end = _end(shard)
        if shard.count > MAX_SHARD:
            raise InputError(
                f"{path} has {shard.count:,} records; at most {MAX_SHARD:,} fit in one"
            )
        if end < 0:
            raise InputError(f"{path} is damaged: its index does not match its checksum")
        spans.append(Span(shard.file, end, size))
    claim, stored = (
        record * sum(shard.count for shard in shards),
        sum(shard.bytes for shard in shards),
    )
    if claim > MAX_RATIO * stored + SLACK:
        raise InputError(
            f"{folder} is damaged: its records claim {claim:,} bytes, but its files have {stored:,}"
        )
    offsets: list[Offsets] = []
    for group in _groups(spans):
        pairs = zip(shards[len(offsets) :], folder.ranges(group), strict=False)
        offsets += [_offsets(folder, *pair, record) for pair in pairs]
    return offsets


def _groups(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """The spans in order, in groups that are read at once: a damaged one ends the reading."""
    group, size = list[Span](), 0
    for span in spans:
        if group and size + span.stop - span.start > GROUP:
            yield group
            group, size = [], 0
        group.append(span)
        size += span.stop - span.start
    yield group


def _end(shard: Shard) -> int:
    """Offset of the end of the last frame, where the index starts."""
    return shard.bytes - HEADER.size - 8 * (shard.count + 1) - DIGEST


def _offsets(folder: Folder, shard: Shard, tail: bytes, record: int) -> Offsets:
    end, length = _end(shard), 8 * (shard.count + 1)
    header, index = tail[: HEADER.size], tail[HEADER.size : HEADER.size + length]
    digest = tail[HEADER.size + length :]
    expected = HEADER.pack(SKIPPABLE, length + DIGEST), hashlib.sha256(index).digest()
    if (header, digest) != expected:
        raise InputError(f"{folder}/{shard.file} is damaged: its index does not match its checksum")
    offsets = np.frombuffer(index, dtype="<i8").astype(np.int64)
    # a comparison, because differences of malicious numbers could overflow
    rising = (offsets[1:] > offsets[:-1]).all()
    if offsets[0] != 0 or offsets[-1] != end or not rising:
        raise InputError(
            f"{folder}/{shard.file} is damaged: its index does not rise from 0 to {end}"
        )
    if np.diff(offsets).max() > record + SLACK:
        raise InputError(f"{folder}/{shard.file} is damaged: a record is too long")
    return offsets


def decompress_record(frame: bytes, size: int, decompressor: zstandard.ZstdDecompressor) -> bytes:
    """Decompress the record in a frame, which must have `size` bytes.

    The size that the frame declares is checked first, so that a malicious frame cannot claim more
    memory.  Raises: ZstdError if it is damaged or of another size.
    """
    if size > MAX_RATIO * len(frame) + SLACK:
        raise zstandard.ZstdError(f"its frame of {len(frame)} bytes claims {size}")
    declared = zstandard.get_frame_parameters(frame)
    if declared.content_size != size or not declared.has_checksum:
        raise zstandard.ZstdError(f"its frame does not declare {size} bytes and a checksum")
    return decompressor.decompress(frame, allow_extra_data=False)


class ShardReport(NamedTuple):
    """Result of checking a shard."""

    damages: list[str]
    """One line for each damaged record."""
    sha256: str
    """SHA-256 of the shard's file."""


def check_shard(
    folder: Folder, shard: Shard, first: int, layout: Layout, sizes: Mapping[str, int]
) -> ShardReport:
    """Read a shard completely and check each record. `first` is the number of its first record.

    `sizes` are the lengths of the folder's files.  Raises: InputError for a damaged index, or a
    file that cannot be read.
    """
    (offsets,) = read_offsets(folder, [shard], sizes, layout.size)
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
                location = f"{folder}/{shard.file}, record {first + record}"
                damages.append(f"{location} is damaged: {damage}")
            record += 1
        del buffer[:used]
    return ShardReport(damages, digest.hexdigest())


def _damage(frame: bytes, layout: Layout, decompressor: zstandard.ZstdDecompressor) -> str:
    try:
        payload = decompress_record(frame, layout.size, decompressor)
    except zstandard.ZstdError as error:
        return str(error)
    row = torch.frombuffer(bytearray(payload), dtype=torch.uint8)[None]
    return "" if layout.matches(row).all() else "it has another schema"
