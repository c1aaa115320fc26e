"""CelebA: 202,599 aligned photographs of faces.  Liu et al. 2015, arXiv:1411.7766.

    FOLDER/img_align_celeba/000001.jpg ...    178 x 218 pixels each
    FOLDER/list_eval_partition.txt            "000001.jpg 0": 0 train, 1 valid, 2 test

Its own agreement forbids passing it on, so a person must fetch it. Of the crops in use ours is the
largest square, the middle 178 x 178 pixels; Song et al. (2011.13456) keep the middle 140 x 140 and
DDIM 128 x 128 about (89, 121), so that their scores are of other images.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from fewstep.data.imageset import ImageSet, squared
from fewstep.download import cache, home
from fewstep.errors import InputError
from fewstep.files import atomic_write

IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
SPLITS = {"train": "0", "valid": "1", "test": "2"}
SHAPE = (178, 218)  # width, height
_WHERE = (
    f"unpack {IMAGES}.zip of mmlab.ie.cuhk.edu.hk/projects/CelebA.html there, and put {PARTITION} "
    "beside its folder; or give another data.path"
)

Pixels = UInt8[np.ndarray, "n 3 size size"]


def read_celeba(split: str, *, size: int | None, folder: Path | None = None) -> ImageSet:
    """162,770 (train), 19,867 (valid) or 19,962 (test) faces, unlabelled, at `size` x `size`.

    Scaled as `squared` does it. What was read is kept in the cache until a file changes.
    """
    if size is None:
        raise InputError(
            "celeba needs data.size, such as 32 or 64: at their own 178 pixels its faces fill 15 GB"
        )
    folder = (folder or home() / "data" / "celeba").expanduser()
    names, stamp = _listed(folder, split)
    kept = cache() / "celeba" / f"{split}-{size}-{stamp}.npy"
    images = _kept(kept, len(names), size)
    if images is None:
        images = _read([folder / IMAGES / name for name in names], size)
        with (
            suppress(OSError),
            atomic_write(kept) as file,
        ):  # without it, the next time takes as long
            np.save(file, images)
    columns = {"file_name": tuple(names)}
    return ImageSet("celeba", torch.from_numpy(images), columns=columns)


def _listed(folder: Path, split: str) -> tuple[list[str], str]:
    """The split's files, all of which are there, and a digest of their sizes and times."""
    for needed in (folder / IMAGES, folder / PARTITION):
        if not needed.exists():
            raise InputError(f"there is no {needed}; {_WHERE}")
    rows = [line.split() for line in (folder / PARTITION).read_text().splitlines() if line.strip()]
    names = [row[0] for row in rows if row[1:] == [SPLITS[split]]]
    if not names or any(len(row) != 2 or row[1] not in SPLITS.values() for row in rows):
        raise InputError(
            f"{folder / PARTITION} is not CelebA's: it holds lines such as '000001.jpg 0', and "
            f"some for {split}; {_WHERE}"
        )
    with os.scandir(folder / IMAGES) as entries:
        there = {entry.name: entry.stat() for entry in entries}
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError(
            f"{folder / IMAGES} lacks {len(missing):,} of the {len(names):,} images of {split}, "
            f"{missing[0]} first; {_WHERE}"
        )
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for name in names:
        digest.update(f"\n{name} {there[name].st_size} {there[name].st_mtime_ns}".encode())
    return names, digest.hexdigest()[:16]


def _kept(path: Path, count: int, size: int) -> Pixels | None:
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or damaged
        return None
    return images if images.shape == (count, 3, size, size) and images.dtype == np.uint8 else None


def _read(paths: Sequence[Path], size: int) -> Pixels:
    print(f"fewstep: reading {len(paths):,} faces of CelebA, kept for next time", file=sys.stderr)
    images = np.empty((len(paths), 3, size, size), np.uint8)

    def put(row: int) -> None:
        images[row] = _face(paths[row], size).transpose(2, 0, 1)

    # threads, because Pillow decodes without holding Python's lock
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(put, range(len(paths))):
            pass
    return images


def _face(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    try:
        with Image.open(path) as image:
            face = image.convert("RGB")
    # a damaged file makes Pillow's decoders raise nearly anything
    except Exception as error:
        raise InputError(f"{path} is not a readable image ({error}); unpack it again") from error
    if face.size != SHAPE:
        raise InputError(
            f"{path} has {face.width} x {face.height} pixels, and an aligned face 178 x 218: "
            f"{_WHERE}"
        )
    return np.asarray(squared(face, size))
