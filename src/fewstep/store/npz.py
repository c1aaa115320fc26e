"""Arrays from an .npz that anybody may have written: no size is believed, nothing is unpickled."""

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

# the one spelling in which NumPy writes a header: matched, so that no foreign text is evaluated
HEADER = re.compile(
    rb"(?s)\x93NUMPY\x01\x00..\{'descr': '([^']*)', 'fortran_order': (True|False), "
    rb"'shape': \(([0-9, ]*)\), \} *\n"
)
END = struct.Struct("<4s4H2LH")  # how a zip ends


def unframed(raw: bytes, limit: int) -> bytes:
    """What a frame holds, counted before any of it is kept: what it declares may be a lie."""
    decompressor, size = zstandard.ZstdDecompressor(), 0
    with decompressor.stream_reader(raw) as stream:
        while size <= limit and (piece := stream.read(1 << 20)):
            size += len(piece)
    if size > limit:
        raise InputError(f"it decompresses to more than {limit} bytes; no sample is so large")
    declared = zstandard.get_frame_parameters(raw).content_size
    if size == 0 or declared not in (size, zstandard.CONTENTSIZE_UNKNOWN):
        raise zstandard.ZstdError(f"its frame ends after {size} bytes")
    return decompressor.decompress(raw, max_output_size=size, allow_extra_data=False)


def members(payload: bytes) -> Iterator[tuple[str, bytes]]:
    """Every array's name and file. Members may not be deflated, so none is larger than the zip."""
    signature, *_, directory, _, comment = END.unpack(payload[-END.size :])
    zip64 = payload[-END.size - 20 :].startswith(b"PK\x06\x07")
    # zipfile makes an object of each entry at once: a thousand are enough
    if signature != b"PK\x05\x06" or comment or zip64 or directory > 1 << 16:
        raise zipfile.BadZipFile("it holds no .npz")
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise InputError("its .npz is compressed itself; write it with numpy.savez")
        if sum(entry.file_size for entry in entries) > len(payload):
            raise zipfile.BadZipFile("its .npz declares more than it holds")
        for entry in entries:
            yield entry.filename.removesuffix(".npy"), archive.read(entry)


def array(name: str, member: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A .npy file as an array of its own; `InputError` unless it is of that dtype."""
    if not (found := HEADER.match(member)):
        raise InputError(f"{name!r} is no plain array of numbers")
    kind, fortran, sizes = (group.decode("latin-1") for group in found.groups())
    if kind != dtype.str:
        raise InputError(f"{name!r} is {kind!r}; it must be {dtype.str!r}, {dtype.name}")
    shape = tuple(int(size) for size in sizes.split(",") if size.strip())
    if math.prod(shape) * dtype.itemsize != (size := len(member) - found.end()):
        raise InputError(f"{name!r} declares shape {shape} and has {size} bytes")
    flat = np.frombuffer(member, dtype, offset=found.end())
    return flat.reshape(shape, order="F" if fortran == "True" else "C").copy()
