"""A person's own images: class sub-folders, a `metadata.csv`, or a flat folder."""

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

from fewstep.data.imageset import ImageSet, squared
from fewstep.errors import InputError

TABLE = "metadata.csv"
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class _Listing:
    """What a folder holds, before any image is opened; `files` are relative to it."""

    files: Sequence[str]
    labels: Sequence[str] | None = None
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


def read_folder(folder: Path, *, size: int | None = None) -> ImageSet:
    """The images of `folder`, in the order of their relative names, always as three channels.

    - With a `metadata.csv`: its `file_name` column lists the images; `label` gives classes, by
      name or by number from 0; every other column is kept as text.
    - Without one: each sub-folder is a class, or all images lie in `folder` itself, unlabelled.

    Transparent pixels are shown on white, grey ones repeated in three channels. Names sort as text
    unless all are whole numbers. All images have one size, unless `size` is given: then the shorter
    side is scaled to it (see `squared`) and the middle kept.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; path says where the images are")
    listing = _from_table(folder / TABLE) if (folder / TABLE).exists() else _from_tree(folder)
    if not listing.files:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    images = _decoded(folder, listing.files, size)
    columns = {"file_name": tuple(listing.files), **listing.columns}
    labels, class_names = (None, ()) if listing.labels is None else _numbered(listing.labels)
    return ImageSet(folder.resolve().name, images, labels, class_names, columns)


def _from_tree(folder: Path) -> _Listing:
    inside = (path.relative_to(folder) for path in folder.rglob("*"))
    images = sorted(
        path
        for path in inside
        if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)
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
        # -sig: spreadsheets begin their UTF-8 with a byte-order mark
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            if "file_name" not in (reader.fieldnames or ()):
                raise InputError(f"{table} has no column file_name; it must name the images")
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{table} is not a CSV file in UTF-8 ({error}); repair it") from error
    for row in rows:
        # where the csv module puts what is too many or too few
        if None in row or None in row.values():
            raise InputError(f"{table}: the row of {row['file_name']} has not one value a column")
    return rows


def _check_labels(table: Path, labels: Sequence[str]) -> None:
    if "" in labels:
        raise InputError(f"{table}: a label is empty; give every image one, or drop the column")
    if not _are_numbers(labels):
        return
    numbers = {int(label) for label in labels}
    absent = set(range(len(numbers))) - numbers
    if absent:
        raise InputError(
            f"{table}: labels run from {min(numbers)} to {max(numbers)} and no image has label "
            f"{min(absent)}; number classes from 0 without gaps, or write names"
        )


def _are_numbers(labels: Sequence[str]) -> bool:
    return all(re.fullmatch(r"-?\d+", label) for label in labels)


def _numbered(labels: Sequence[str]) -> tuple[Int64[Tensor, " n"], tuple[str, ...]]:
    class_names = sorted(set(labels), key=int if _are_numbers(labels) else str)
    number = {name: i for i, name in enumerate(class_names)}
    return torch.tensor([number[label] for label in labels]), tuple(class_names)


def _decoded(folder: Path, files: Sequence[str], size: int | None) -> UInt8[Tensor, "n 3 h w"]:
    # threads, because Pillow decodes without holding Python's lock
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        images = list(pool.map(partial(_decode, size=size), (folder / file for file in files)))
    for file, image in zip(files, images, strict=True):
        if image.shape != images[0].shape:
            raise InputError(
                f"{folder}: {file} has {_extent(image)} pixels but {files[0]} "
                f"{_extent(images[0])}; give a size to bring all images to one"
            )
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _extent(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"


def _decode(path: Path, *, size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            opaque = _on_white(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {TABLE} may list only what is there") from error
    # a damaged file makes Pillow's decoders raise nearly anything
    except Exception as error:
        raise InputError(
            f"{path} is not a readable image ({error}); replace or remove it"
        ) from error
    return np.asarray(opaque if size is None else squared(opaque, size))


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow would clip these to 255 rather than scale them
        raise ValueError(f"its pixels are {image.mode}, deeper than 8 bits")
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white
