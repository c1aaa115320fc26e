"""CelebA: 202,599 aligned photographs of faces.  Liu et al. 2015, arXiv:1411.7766.

    FOLDER/img_align_celeba/000001.jpg ...    178 x 218 pixels each
    FOLDER/list_eval_partition.txt            "000001.jpg 0": 0 train, 1 valid, 2 test

Its licence forbids redistribution, so it must be downloaded by hand. We crop each image to its
middle 178 x 178 pixels. Song et al. (arXiv:2011.13456) use the middle 140 x 140, and DDIM the
128 x 128 around (89, 121). Their scores therefore cannot be compared with ours.
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

from fewstep.data.imageset import ImageSet, check_split, resize_to_square
from fewstep.download import cache, home
from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.paths import open_regular, read_text

IMAGES, PARTITION = "img_align_celeba", "list_eval_partition.txt"
SPLITS = {"train": "0", "valid": "1", "test": "2"}
SHAPE = (178, 218)  # width, height
_INSTRUCTION = (
    f"get {IMAGES}.zip and {PARTITION} from mmlab.ie.cuhk.edu.hk/projects/CelebA.html, and put the "
    "unpacked folder and that file side by side into the folder named by data.path"
)

Pixels = UInt8[np.ndarray, "n 3 size size"]


def read_celeba(split: str, *, size: int | None, path: Path | None = None) -> ImageSet:
    """162,770 (train), 19,867 (valid) or 19,962 (test) faces, unlabelled, at `size` x `size`.

    The images are resized with `resize_to_square`, and cached until a file changes.
    """
    check_split("celeba", split, SPLITS)
    if size is None:
        raise InputError(
            "celeba needs data.size (doctor: --size), such as 32 or 64: at full size, 178 pixels, "
            "it takes 15 GB"
        )
    folder = path or home() / "data" / "celeba"
    names, digest = _list_files(folder, split)
    cached = cache() / "celeba" / f"{split}-{size}-{digest}.npy"
    images = _read_cache(cached, len(names), size)
    if images is None:
        images = _read([folder / IMAGES / name for name in names], size)
        with suppress(OSError), atomic_write(cached) as file:  # only a cache
            np.save(file, images)
    columns = {"file_name": tuple(names)}
    return ImageSet("celeba", torch.from_numpy(images), columns=columns)


def _list_files(folder: Path, split: str) -> tuple[list[str], str]:
    """Names of the split's files, and a digest of their sizes and modification times.

    Raises: InputError if a file is missing.
    """
    for required in (folder / IMAGES, folder / PARTITION):
        if not required.exists():
            raise InputError(f"{required} does not exist; {_INSTRUCTION}")
    rows = [line.split() for line in read_text(folder / PARTITION).splitlines() if line.strip()]
    names = [row[0] for row in rows if row[1:] == [SPLITS[split]]]
    if not names or any(len(row) != 2 or row[1] not in SPLITS.values() for row in rows):
        raise InputError(
            f"{folder / PARTITION} is not CelebA's: it needs lines such as '000001.jpg 0', and "
            f"at least one of the split {split}; {_INSTRUCTION}"
        )
    with os.scandir(folder / IMAGES) as entries:
        present = {entry.name: entry.stat() for entry in entries}
    missing = [name for name in names if name not in present]
    if missing:
        raise InputError(
            f"{folder / IMAGES} lacks {len(missing):,} of the {len(names):,} images of {split}, "
            f"such as {missing[0]}; {_INSTRUCTION}"
        )
    digest = hashlib.sha256(str(folder.resolve()).encode())
    for name in names:
        digest.update(f"\n{name} {present[name].st_size} {present[name].st_mtime_ns}".encode())
    return names, digest.hexdigest()[:16]


def _read_cache(path: Path, count: int, size: int) -> Pixels | None:
    try:
        images = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # missing or damaged
        return None
    return images if images.shape == (count, 3, size, size) and images.dtype == np.uint8 else None


def _read(paths: Sequence[Path], size: int) -> Pixels:
    print(f"fewstep: reading {len(paths):,} faces of CelebA; they are cached", file=sys.stderr)
    images = np.empty((len(paths), 3, size, size), np.uint8)

    def read(row: int) -> None:
        images[row] = _face(paths[row], size).transpose(2, 0, 1)

    # threads suffice: Pillow decodes without holding the interpreter's lock
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(read, range(len(paths))):
            pass
    return images


def _face(path: Path, side: int) -> UInt8[np.ndarray, "size size 3"]:
    try:
        with open_regular(path) as file, Image.open(file, formats=["JPEG", "PNG"]) as image:
            size = image.size  # before it is decoded, which takes long if it is huge
            face = image.convert("RGB") if size == SHAPE else None
    # Pillow raises many kinds of exceptions for damaged files
    except Exception as error:
        raise InputError(f"{path} is not a readable image ({error}); unpack it again") from error
    if face is None:
        raise InputError(
            f"{path} has {size[0]} x {size[1]} pixels, but an aligned face has 178 x 218; "
            f"{_INSTRUCTION}"
        )
    return np.asarray(resize_to_square(face, side))
