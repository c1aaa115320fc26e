"""MNIST and Fashion-MNIST, from their authors' IDX files."""

import gzip
import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fewstep.data.imageset import ImageSet, check_split
from fewstep.download import fetch, home
from fewstep.errors import InputError
from fewstep.paths import open_regular


class Source(NamedTuple):
    """Where a data set is published."""

    url: str
    md5: dict[str, str]
    """MD5 of each file, by name."""
    class_names: tuple[str, ...]
    megabytes: int
    """Size of all files in 10⁶ bytes."""


MAX_BYTES = 1 << 28
"""Largest size of an unpacked file; the largest published one has 47 MB."""
SOURCES = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        tuple("0123456789"),
        12,
    ),
    "fashion-mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        (
            "T-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
        31,
    ),
}


def read_mnist(split: str) -> ImageSet:
    """60,000 (train) or 10,000 (test) grey digits of 28 x 28.  LeCun et al. 1998."""
    return _read("mnist", split)


def read_fashion_mnist(split: str) -> ImageSet:
    """60,000 (train) or 10,000 (test) grey garments of 28 x 28.  Xiao et al. 2017, 1708.07747."""
    return _read("fashion-mnist", split)


def _read(name: str, split: str) -> ImageSet:
    """Read a split, downloading its missing files.

    Existing files may have another MD5 than the published ones, because it depends on the
    compression.
    """
    check_split(name, split, ["train", "test"])
    folder = home() / "data" / name
    prefix = "train" if split == "train" else "t10k"
    files = (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
    missing = [file for file in files if not (folder / file).exists()]
    source = SOURCES[name]
    for file in missing:
        otherwise = f"put {' and '.join(missing)} into {folder}"
        digest = f"md5:{source.md5[file]}"
        fetch(source.url + file, digest, folder / file, otherwise=otherwise)
    images = read_idx(folder / files[0], dimensions=3)
    labels = read_idx(folder / files[1], dimensions=1)
    if len(images) != len(labels):
        raise InputError(
            f"{folder}: {files[0]} holds {len(images)} images, but {files[1]} holds "
            f"{len(labels)} labels; remove both to download them again"
        )
    return ImageSet(
        name,
        torch.from_numpy(images).unsqueeze(1),
        torch.from_numpy(labels.astype(np.int64)),
        source.class_names,
    )


def read_idx(path: Path, *, dimensions: int) -> np.ndarray:
    """Read a gzipped IDX file of uint8 values with this number of dimensions.

    Its bytes are 0, 0, 8 (for uint8), the number of dimensions, big-endian sizes, and the values.

    Raises: InputError if it is damaged.
    """
    try:
        with open_regular(path) as packed, gzip.GzipFile(fileobj=packed) as file:
            content = file.read(MAX_BYTES)  # a few bytes may unpack to many
    except (OSError, EOFError, zlib.error) as error:
        raise _damage_error(path, str(error)) from error
    header = 4 + 4 * dimensions
    if len(content) < header or content[:4] != bytes([0, 0, 8, dimensions]):
        raise _damage_error(
            path, f"it is not an IDX file of uint8 values with {dimensions} dimensions"
        )
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    if len(content) != header + math.prod(shape):
        values = len(content) - header
        declared = math.prod(shape)
        raise _damage_error(path, f"its header declares {declared} values, but it has {values}")
    # copied, because tensors must not share the read-only memory of `bytes`
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def _damage_error(path: Path, reason: str) -> InputError:
    return InputError(f"{path} cannot be read: {reason}; remove it to download it again")
