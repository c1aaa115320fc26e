"""CIFAR-10, from its binary version: records of one label and 3,072 pixels."""

import csv
import os
import re
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from fewstep.data.imageset import ImageSet, check_split
from fewstep.download import fetch, home
from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.paths import read_text

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MEGABYTES = 170
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
RECORDS = 10_000  # images in each file
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32
FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
"""The files of each split, in the folder FOLDER."""


def read_cifar10(split: str) -> ImageSet:
    """50,000 (train) or 10,000 (test) colour images of 32 x 32.  Krizhevsky 2009, Technical Report.

    The column `file_name` is read from `train.csv` or `test.csv` beside the batches, if present:
    label, file name; one line per image, no header.
    """
    folder = home() / "data" / FOLDER
    check_split("cifar10", split, FILES)
    files = FILES[split]
    if not all((folder / file).exists() for file in files):
        _download(folder)
    images = np.empty((len(files) * RECORDS, *_SHAPE), np.uint8)
    labels = np.empty(len(files) * RECORDS, np.int64)
    for i, file in enumerate(files):
        records = _records(folder / file)
        rows = slice(i * RECORDS, (i + 1) * RECORDS)
        labels[rows] = records[:, 0]
        images[rows] = records[:, 1:].reshape(-1, *_SHAPE)
    table = folder / f"{split}.csv"
    columns = {"file_name": _file_names(table, labels)} if table.exists() else {}
    pixels, numbers = torch.from_numpy(images), torch.from_numpy(labels)
    return ImageSet("cifar10", pixels, numbers, CLASS_NAMES, columns)


def read_cifar10_captions(split: str) -> ImageSet:
    """CIFAR-10 with a caption for each image: the noun in its file name, such as "tabby cat".

    Without the file names, captions are the names of classes, and a warning says so.
    """
    images = read_cifar10(split)
    assert images.labels is not None
    if "file_name" in images.columns:
        nouns = map(_noun, images.columns["file_name"])
    else:
        warnings.warn(
            f"captions are the names of classes, because {home() / 'data' / FOLDER} has no "
            f"{split}.csv with a label and a file name for each image",
            stacklevel=2,
        )
        nouns = (CLASS_NAMES[label] for label in images.labels.tolist())
    captions = tuple((noun,) for noun in nouns)
    return replace(images, name="cifar10-captions", captions=captions)


def _noun(file_name: str) -> str:
    """ "tabby cat" from "tabby_cat_s_000123.png"."""
    return re.sub(r"(_s_[0-9]+)?\.png$", "", file_name).replace("_", " ")


def _records(path: Path) -> np.ndarray:
    size = path.stat().st_size
    if size != RECORDS * _RECORD:
        raise InputError(
            f"{path} has {size} bytes instead of {RECORDS * _RECORD}; "
            "remove it to download CIFAR-10 again"
        )
    return np.fromfile(path, np.uint8).reshape(RECORDS, _RECORD)


def _file_names(table: Path, labels: np.ndarray) -> tuple[str, ...]:
    rows = [row for row in csv.reader(read_text(table).splitlines()) if len(row) == 2]
    if [label for label, _ in rows] != [str(label) for label in labels]:
        raise InputError(
            f"{table} does not list these images (label, file name): its labels differ from those "
            "of the batches; correct or remove it (it is optional)"
        )
    return tuple(file_name for _, file_name in rows)


def _download(folder: Path) -> None:
    files = (*FILES["train"], *FILES["test"])
    # with the process number, so that ranks do not remove each other's archive
    archive = folder.with_name(f"cifar-10-binary.{os.getpid()}.tar.gz")
    try:
        fetch(URL, f"md5:{MD5}", archive, otherwise=f"put {', '.join(files)} into {folder}")
        _unpack(archive, folder, files)
    finally:
        archive.unlink(missing_ok=True)


def _unpack(archive: Path, folder: Path, files: tuple[str, ...]) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            # the archive's paths are not used: they could point outside the folder
            content = tar.extractfile(member) if member.isfile() and name in files else None
            if content is None:
                continue
            with atomic_write(folder / name) as file:
                file.write(content.read())
