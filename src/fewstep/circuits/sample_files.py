"""Convert teacher data between stores and the format of Denoising Circuits, one file per sample.

A file `sample_00000000.zst` is an .npz with uncompressed arrays in one zstd frame. The names of its
arrays have two spellings: suffixed, as its code writes them, and plain, as in its README:

    store           suffixed             plain             dtype    shape
    noise           x_T_f16              x_T               float16  (c, h, w)
    x0              x0_teacher_f16       x0_teacher        float16  (c, h, w)
    rin0            rin0_q               rin0              int8     (C, H, W)
                    rin0_scale_f16       rin0_scale        float16  (C,)
    r_chunks        r_chunks_q           r_chunks          int8     (N, C, H, W)
                    r_chunks_scale_f16   r_chunks_scale    float16  (N, C)
                    T, chunk_size        (absent)          int16    (1,)

rin0 is the initial state and r_chunks are N residual chunks; their sum is the state after the
teacher's T steps. Values are code · scale. The files are not trusted: nothing is unpickled, and
declared sizes are checked.
"""

import hashlib
import io
import math
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor

from fewstep.circuits import npz
from fewstep.errors import InputError
from fewstep.files import TEMPORARY
from fewstep.paths import read_regular
from fewstep.store.codecs import F16, Codec, Int8, Shape
from fewstep.store.folder import Address, LocalFolder
from fewstep.store.reader import Reader
from fewstep.store.writer import Writer

Spelling = Literal["suffixed", "plain"]
Array = npt.NDArray[Any]

LIMIT = 1 << 30  # bytes of a file, and of its decompressed content
SHARD = 1 << 28  # bytes of decoded samples held in memory for a shard
SAMPLES, SAMPLE = "sample_*.zst", "sample_{:08d}.zst"

# stored tensor -> its suffixed and its plain name
NAMES = {
    "noise": ("x_T_f16", "x_T"),
    "x0": ("x0_teacher_f16", "x0_teacher"),
    "rin0": ("rin0_q", "rin0"),
    "rin0.scale": ("rin0_scale_f16", "rin0_scale"),
    "r_chunks": ("r_chunks_q", "r_chunks"),
    "r_chunks.scale": ("r_chunks_scale_f16", "r_chunks_scale"),
}
STEP_COUNTS = ("T", "chunk_size")
PART_OF = {
    **{name: part for part, names in NAMES.items() for name in names},
    **{name: name for name in STEP_COUNTS},
}
INTEGERS = {"rin0": "|i1", "r_chunks": "|i1", "T": "<i2", "chunk_size": "<i2"}
DIMENSIONS = {"noise": 3, "x0": 3, "rin0": 3, "r_chunks": 4}


def read_sample(path: Path | str) -> dict[str, Tensor]:
    """Read `noise`, `x0`, `rin0` and `r_chunks` as float32, of the shapes in the table above.

    Each name may be in either spelling, suffixed or plain; `T` and `chunk_size` may be absent.
    Values are exactly code · scale.  Raises: InputError, with the path, for arrays that are
    damaged, missing, unknown, of another dtype or shape, or not finite, and for more than 1 GiB.
    """
    return _decode(*_load(Path(path)))


def write_sample(
    path: Path | str,
    sample: Mapping[str, Tensor],
    *,
    spelling: Spelling = "suffixed",
    steps: int | None = None,
    percentile: float = 99.5,
) -> None:
    """Write one file atomically, from float32 tensors of the shapes in the table above.

    The `percentile` (50 to 100) of |x| in each channel becomes code 127. `steps` is written as `T`,
    and `steps / N` as `chunk_size`; the plain spelling has neither.  Raises: InputError for other
    tensors, values that the codecs cannot represent, and steps that N does not divide.
    """
    with _prefix_errors(path):
        schema = _schema({name: tuple(tensor.shape) for name, tensor in sample.items()}, percentile)
        content = _file_content(_encode(schema, sample), spelling, steps)
    LocalFolder(Path(path).parent).publish(Path(path).name, [content])


def to_store(source: Path | str, target: Address) -> Generator[int, None, None]:
    """Convert a folder of sample_*.zst, in the order of their names, into a store.

    The store has exactly the values of the files.

    Yields the number of converted samples, last when the store is finished. Complete shards of an
    earlier run are kept.  Raises: InputError for a file that is damaged, has other shapes or
    another `T` than the first, or values that the store's codecs would change.
    """
    files = sorted(_local_path(source).glob(SAMPLES))
    if not files:
        raise InputError(f"{source} holds no {SAMPLES} files; give the folder of the samples")
    schema, steps, _ = _read_convertible(files[0])
    floats = sum(math.prod(codec.shape) for codec in schema.values())
    shard_size = max(1, min(1024, (SHARD - 1) // (4 * floats)))
    writer = Writer(
        target,
        schema=schema,
        count=len(files),
        shard_size=shard_size,
        provenance={"source": "denoising-circuits", "steps": steps, "samples": _hash_files(files)},
    )
    missing = writer.missing()
    done = len(files) - sum(len(rows) for rows in missing)
    for rows in missing:
        yield done
        records = {name: torch.empty(len(rows), *codec.shape) for name, codec in schema.items()}
        for position, row in enumerate(rows):
            row_schema, row_steps, sample = _read_convertible(files[row])
            if (row_schema, row_steps) != (schema, steps):
                raise InputError(f"{files[row]}: its shapes or T differ from those of {files[0]}")
            for name, values in sample.items():
                records[name][position] = values
        writer.write(rows.start, records)
        done += len(rows)
    writer.finish()
    yield done


def from_store(
    source: Address, target: Path | str, *, spelling: Spelling = "suffixed"
) -> Generator[int, None, None]:
    """Convert a store of `noise`, `x0`, `rin0` and `r_chunks` into files with the same values.

    Yields the number of converted records. Files are numbered by record; files of an earlier run
    are kept. `T` is `steps` in the store's provenance, if present.  Raises: InputError for a store
    of other tensors, values that would change, and a target folder with other content.
    """
    reader, folder = Reader(source), _local_path(target)
    number = reader.provenance.get("steps")
    steps = number if type(number) is int else None
    with _prefix_errors(source):
        schema = _schema({name: codec.shape for name, codec in reader.schema.items()})
    present = _existing_samples(folder, len(reader))
    for row in range(len(reader)):
        yield row
        path = folder / SAMPLE.format(row)
        sample = {name: values[0] for name, values in reader[[row]].items()}
        if path.name in present:
            old = read_sample(path)
            if any(v.dtype != old[n].dtype or not v.equal(old[n]) for n, v in sample.items()):
                raise InputError(f"{path} holds another sample; take a new or empty folder")
        else:
            with _prefix_errors(f"{source}, record {row}"):
                content = _file_content(_encode(schema, sample, exact=True), spelling, steps)
            LocalFolder(folder).publish(path.name, [content])
    yield len(reader)


def _local_path(folder: Path | str) -> Path:
    if "://" in str(folder):
        raise InputError(f"{folder}: {SAMPLES} files must be in a local folder")
    return Path(folder)


def _hash_files(files: list[Path]) -> str:
    """SHA-256 of all names and lengths, and of the first file's bytes."""
    digest = hashlib.sha256()
    with _prefix_errors(files[0].parent):
        for file in files:
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(read_regular(files[0], limit=LIMIT))
    return digest.hexdigest()


def _schema(shapes: Mapping[str, Shape], percentile: float = 100.0) -> dict[str, Codec]:
    """Codecs of a sample's tensors.  Raises: InputError if their shapes do not match."""
    if set(shapes) != set(DIMENSIONS):
        raise InputError(f"a sample has {', '.join(DIMENSIONS)}, not {', '.join(sorted(shapes))}")
    for name, rank in DIMENSIONS.items():
        if len(shapes[name]) != rank or 0 in shapes[name]:
            raise InputError(
                f"{name!r} has shape {shapes[name]}; it needs {rank} dimensions of at least 1"
            )
    if shapes["x0"] != shapes["noise"] or shapes["r_chunks"][1:] != shapes["rin0"]:
        raise InputError(
            f"x0 must have the shape of noise, and each chunk that of rin0; shapes: {shapes}"
        )
    return {
        "noise": F16(shapes["noise"]),
        "x0": F16(shapes["x0"]),
        "rin0": Int8(shapes["rin0"], channels=1, percentile=percentile),
        "r_chunks": Int8(shapes["r_chunks"], channels=2, percentile=percentile),
    }


def _encode(
    schema: Mapping[str, Codec], sample: Mapping[str, Tensor], *, exact: bool = False
) -> dict[str, Array]:
    """Encode a sample into parts.  Raises: InputError if impossible or, with `exact`, lossy."""
    arrays: dict[str, Array] = {}
    for name, codec in schema.items():
        values = sample[name].detach().cpu()
        with _prefix_errors(repr(name)):
            if values.dtype != torch.float32:
                raise InputError(f"its dtype is {values.dtype}; it must be torch.float32")
            parts = codec.encode(values[None])
            if exact and not codec.decode(parts)[0].equal(values):
                raise InputError(
                    "its values would change: float16, or codes up to 127, cannot hold them"
                )
        arrays |= {name + suffix: part[0].numpy() for suffix, part in parts.items()}
    return arrays


def _decode(schema: Mapping[str, Codec], arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    decoded: dict[str, Tensor] = {}
    for name, codec in schema.items():
        parts = {suffix: torch.from_numpy(arrays[name + suffix])[None] for suffix in codec.parts}
        decoded[name] = codec.decode(parts)[0]
    return decoded


def _read_convertible(path: Path) -> tuple[dict[str, Codec], int | None, dict[str, Tensor]]:
    """Codecs, T and tensors of a file.

    Raises: InputError if T is not N · chunk_size, or conversion would change a value.
    """
    schema, arrays = _load(path)
    sample, chunks = _decode(schema, arrays), len(arrays["r_chunks"])
    steps, size = (int(arrays[name][0]) if name in arrays else None for name in STEP_COUNTS)
    with _prefix_errors(path):
        if size is not None and size * chunks != steps:
            raise InputError(f"T is {steps}, but it has {chunks} chunks of chunk_size {size}")
        _encode(schema, sample, exact=True)
    return schema, steps, sample


def _existing_samples(folder: Path, count: int) -> set[str]:
    """Names of the samples in the folder, after removing temporary files of killed runs."""
    with _prefix_errors(folder):
        for leftover in folder.glob(f"{SAMPLES}*{TEMPORARY}"):
            leftover.unlink(missing_ok=True)
        names = set(os.listdir(folder)) if folder.exists() else set[str]()
    if others := names - {SAMPLE.format(row) for row in range(count)}:
        raise InputError(f"{folder} holds {min(others)}; convert into a new or empty folder")
    return names


def _file_content(arrays: Mapping[str, Array], spelling: Spelling, steps: int | None) -> bytes:
    column = {"suffixed": 0, "plain": 1}[spelling]
    content: dict[str, Any] = {names[column]: arrays[part] for part, names in NAMES.items()}
    if spelling == "suffixed" and steps is not None:
        n = len(arrays["r_chunks"])
        if not 1 <= steps < 1 << 15 or steps % n:
            raise InputError(
                f"T = {steps} must be a multiple of {n}, the number of chunks, and at most 32767; "
                "use the plain spelling, which has no T"
            )
        content |= {"T": np.array([steps], "<i2"), "chunk_size": np.array([steps // n], "<i2")}
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return zstandard.ZstdCompressor(level=10, write_checksum=True).compress(buffer.getvalue())


def _load(path: Path) -> tuple[dict[str, Codec], dict[str, Array]]:
    """Codecs and arrays of a file, after checking dtypes, shapes and values."""
    with _prefix_errors(path):
        if (size := path.stat().st_size) > LIMIT:
            raise InputError(f"it has {size} bytes; at most {LIMIT} are allowed")
        raw = read_regular(path, limit=LIMIT)
        try:
            arrays = _arrays(npz.decompress(raw, LIMIT))
        except InputError:
            raise
        except Exception as error:  # zipfile alone raises eight types for damaged files
            raise InputError(f"it is damaged: {error}") from None
        return _check(arrays), arrays


def _arrays(payload: bytes) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    for name, member in npz.members(payload):
        part = PART_OF.get(name)
        if part is None:
            raise InputError(f"it holds {name!r}; the arrays of a sample are {', '.join(PART_OF)}")
        if part in arrays:
            raise InputError(f"it holds {name!r} twice")
        arrays[part] = npz.array(name, member, np.dtype(INTEGERS.get(part, "<f2")))
    if missing := [" or ".join(names) for part, names in NAMES.items() if part not in arrays]:
        raise InputError(f"it lacks {', '.join(missing)}")
    return arrays


def _check(arrays: Mapping[str, Array]) -> dict[str, Codec]:
    schema = _schema({name: arrays[name].shape for name in DIMENSIONS})
    expected = {name: (1,) for name in STEP_COUNTS if name in arrays}
    for name, codec in schema.items():
        expected |= {name + suffix: shape for suffix, (_, shape) in codec.parts.items()}
    for part, shape in expected.items():
        if arrays[part].shape != shape:
            raise InputError(f"{part!r} has shape {arrays[part].shape}; it must be {shape}")
        if not np.isfinite(arrays[part]).all():
            raise InputError(f"{part!r} has values that are not finite")
        if part.endswith(".scale") and (arrays[part] < 0).any():
            raise InputError(f"{part!r} has negative values")
    return schema


@contextmanager
def _prefix_errors(prefix: object) -> Generator[None, None, None]:
    """Raise InputError and OSError as InputError, with the prefix."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{prefix}: {error}") from None
    except OSError as error:
        raise InputError(f"{prefix}: {error.strerror or error}") from None
