"""Read arrays from untrusted .npz data. Sizes are checked, and nothing is unpickled."""

import io
import math
import re
import struct
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from fewstep.errors import InputError

# NumPy evaluates a header as Python; we accept exactly what NumPy writes
HEADER = re.compile(
    rb"(?s)\x93NUMPY\x01\x00..\{'descr': '([^']*)', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]*)\), \} *\n"
)
END_RECORD = struct.Struct("<4s4H2LH")  # of a zip file


def decompress(raw: bytes, limit: int) -> bytes:
    """Decompress a zstd frame without trusting the size that it declares.

    Raises: InputError if the content has more than `limit` bytes, ZstdError for a damaged frame.
    """
    decompressor, size = zstandard.ZstdDecompressor(), 0
    with decompressor.stream_reader(raw) as stream:
        while size <= limit and (piece := stream.read(1 << 20)):
            size += len(piece)
    if size > limit:
        raise InputError(f"it decompresses to more than {limit} bytes, the limit of a sample")
    declared = zstandard.get_frame_parameters(raw).content_size
    if size == 0 or declared not in (size, zstandard.CONTENTSIZE_UNKNOWN):
        raise zstandard.ZstdError(f"its frame ends after {size} bytes")
    return decompressor.decompress(raw, max_output_size=size, allow_extra_data=False)


def members(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the .npy file of each array in an .npz.

    The arrays must be stored without compression, so that together they are no larger than
    `payload`.  Raises: InputError if they are compressed, BadZipFile if the .npz is damaged.
    """
    signature, *_, directory, _, comment = END_RECORD.unpack(payload[-END_RECORD.size :])
    zip64 = payload[-END_RECORD.size - 20 :].startswith(b"PK\x06\x07")
    # bounds the number of entries, because zipfile creates an object for each of them
    if signature != b"PK\x05\x06" or comment or zip64 or directory > 1 << 16:
        raise zipfile.BadZipFile("it is not an .npz")
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise InputError("its .npz is compressed; write it with numpy.savez")
        if sum(entry.file_size for entry in entries) > len(payload):
            raise zipfile.BadZipFile("its .npz declares more bytes than it has")
        for entry in entries:
            yield entry.filename.removesuffix(".npy"), archive.read(entry)


def array(name: str, member: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The array in the .npy file `member`, called `name` in messages.

    Raises: InputError if it is damaged or its dtype is not `dtype`.
    """
    if not (match := HEADER.match(member)):
        raise InputError(f"{name!r} is not a plain array of numbers")
    declared, fortran, sizes = (group.decode("latin-1") for group in match.groups())
    if declared != dtype.str:
        raise InputError(
            f"{name!r} has dtype {declared!r}, but must have {dtype.str!r} ({dtype.name})"
        )
    shape = tuple(int(size) for size in sizes.split(",") if size.strip())
    if math.prod(shape) * dtype.itemsize != (size := len(member) - match.end()):
        raise InputError(f"{name!r} declares shape {shape}, but has {size} bytes")
    flat = np.frombuffer(member, dtype, offset=match.end())
    return flat.reshape(shape, order="F" if fortran == "True" else "C").copy()
