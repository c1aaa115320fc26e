"""A user's own images: a folder per class, a `metadata.csv`, or one flat folder."""

import csv
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from fewstep.data.imageset import ImageSet, check_split, resize_to_square
from fewstep.errors import InputError
from fewstep.paths import IMAGE_SUFFIXES, check_kind

TABLE = "metadata.csv"


@dataclass(frozen=True)
class _Listing:
    """Files of a folder, by their paths relative to it, with their labels and text columns."""

    files: Sequence[str]
    labels: Sequence[str] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def read_folder(
    split: str = "train", *, size: int | None = None, path: Path | None = None
) -> ImageSet:
    """Read all images of the folder `path` as RGB, sorted by relative name.

    - With a `metadata.csv`, its column `file_name` lists the images. The column `label` holds class
      names, or numbers from 0; all other columns become text columns of the set.
    - Without one, each sub-folder is a class; or all images are in `path` itself, without labels.

    Transparent images get a white background. Class names are sorted as numbers if all are
    integers, else as text. With `size`, images are resized with `resize_to_square`; without it, all
    images must have the same size.

    Raises: InputError if there are no images, one is damaged, or they do not fit the table.
    """
    check_split("folder", split, ["train"])
    if path is None:
        raise InputError(
            "folder needs a path: write folder:PATH on the command line, or set data.path in a "
            "recipe, to the folder of the images"
        )
    folder = path.expanduser()
    if not folder.is_dir():
        raise InputError(
            f"the folder {folder} does not exist; set path to the folder of the images"
        )
    check_kind(folder, "images")
    listing = _from_table(folder / TABLE) if (folder / TABLE).exists() else _from_tree(folder)
    if not listing.files:
        raise InputError(
            f"{folder} holds no images, that is {', '.join(sorted(IMAGE_SUFFIXES))} files"
        )
    images = _decode_all(folder, listing.files, size)
    columns = {"file_name": tuple(listing.files), **listing.columns}
    labels, class_names = (None, ()) if listing.labels is None else _class_numbers(listing.labels)
    return ImageSet(folder.resolve().name, images, labels, class_names, columns)


def _from_tree(folder: Path) -> _Listing:
    paths = (path.relative_to(folder) for path in folder.rglob("*"))
    images = sorted(
        path
        for path in paths
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
    )
    files = [path.as_posix() for path in images]
    flat = [path for path in images if len(path.parts) == 1]
    if flat and len(flat) < len(images):
        raise InputError(
            f"{folder} holds both images ({flat[0]}, ...) and folders of images; move the images "
            f"into class folders, or list all of them in {TABLE}"
        )
    return _Listing(files, None if flat else [path.parts[0] for path in images])


def _from_table(table: Path) -> _Listing:
    rows = sorted(_rows(table), key=lambda row: row["file_name"])
    names = list(rows[0]) if rows else []
    columns = {name: tuple(row[name] for row in rows) for name in names}
    files = columns.pop("file_name", ())
    labels = columns.pop("label", None)
    if labels is not None:
        _check_labels(table, labels)
    return _Listing(files, labels, columns)


def _rows(table: Path) -> list[dict[str, str]]:
    try:
        # utf-8-sig, because spreadsheets write a byte-order mark
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if "file_name" not in (reader.fieldnames or ()):
                raise InputError(f"{table} has no column file_name; it must name the images")
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{table} is not a CSV file in UTF-8 ({error}); repair it") from error
    for row in rows:
        # the csv module stores surplus values under the key None, and None for missing values
        if None in row or None in row.values():
            raise InputError(
                f"{table}: the row of {row['file_name']} does not have one value per column"
            )
    return rows


def _check_labels(table: Path, labels: Sequence[str]) -> None:
    if "" in labels:
        raise InputError(f"{table}: a label is empty; label every image, or remove the column")
    if not _are_numbers(labels):
        return
    numbers = {int(label) for label in labels}
    absent = set(range(len(numbers))) - numbers
    if absent:
        raise InputError(
            f"{table}: labels range from {min(numbers)} to {max(numbers)}, but no image has label "
            f"{min(absent)}; number classes from 0 without gaps, or use names"
        )


def _are_numbers(labels: Sequence[str]) -> bool:
    return all(re.fullmatch(r"-?\d+", label) for label in labels)


def _class_numbers(labels: Sequence[str]) -> tuple[Int64[Tensor, " n"], tuple[str, ...]]:
    class_names = sorted(set(labels), key=int if _are_numbers(labels) else str)
    number = {name: i for i, name in enumerate(class_names)}
    return torch.tensor([number[label] for label in labels]), tuple(class_names)


def _decode_all(folder: Path, files: Sequence[str], size: int | None) -> UInt8[Tensor, "n 3 h w"]:
    # threads suffice: Pillow decodes without holding the interpreter's lock
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        images = list(pool.map(partial(_decode, size=size), (folder / file for file in files)))
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise InputError(
                f"{folder}: {file} has {_size_text(image)} pixels, but {files[0]} has "
                f"{_size_text(images[0])}; set size to resize all images"
            )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _size_text(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _decode(path: Path, *, size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            opaque = _add_white_background(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing, but {TABLE} lists it; remove its row") from error
    # Pillow raises many kinds of exceptions for damaged files
    except Exception as error:
        raise InputError(
            f"{path} is not a readable image ({error}); replace or remove it"
        ) from error
    return np.asarray(opaque if size is None else resize_to_square(opaque, size))


def _add_white_background(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow would clip such pixels to 255 instead of scaling them
        raise ValueError(f"its pixels have more than 8 bits: its mode is {image.mode}")
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white
