"""Small folders of images for tests."""

import io
import os
import warnings
import zlib
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from fewstep.data import load
from fewstep.data.folder.files import SYSTEM_FILES
from fewstep.errors import InputError


@cache
def picture(name, form="PNG"):
    """Bytes of a 2 x 2 image whose colour depends on `name`."""
    crc = zlib.crc32(name.encode("utf-8", "surrogateescape"))
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (crc & 255, crc >> 8 & 255, crc >> 16 & 255)).save(file, form)
    return file.getvalue()


def build(folder: Path, *names, **texts):
    """Write an image for each name, and files with the texts, whose names have __ for a dot."""
    for name in names:
        path = folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(name))
        except OSError:
            pytest.skip("this file system takes only names in UTF-8")
        if path.name not in os.listdir(path.parent) or path.parent.name not in os.listdir(
            path.parent.parent
        ):
            pytest.skip("this file system changes names")
    for name, text in texts.items():
        path = folder / name.replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def read(folder, **options):
    """The images of a folder, and the warning that reading it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = load("folder", path=folder, **options)
    assert len(caught) <= 1
    message = str(caught[0].message) if caught else ""
    assert "\n" not in message
    return images, message


def refusal(folder, **options):
    """The one line with which a folder is refused."""
    try:
        images, _ = read(folder, **options)
    except InputError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError(f"accepted: {images.columns['file_name']} as {images.class_names}")


def by_name(images):
    """The class name of each image; None without labels."""
    names = images.columns["file_name"]
    if images.labels is None:
        return dict.fromkeys(names)
    labels = images.labels.tolist()
    return {name: images.class_names[i] for name, i in zip(names, labels, strict=True)}


def count_files(folder, above=()):
    """Number of files, by rules of its own: what the account must add up to."""
    above = (*above, os.path.realpath(folder))
    entries = [*os.scandir(folder)]
    total = 1 if not entries and len(above) > 1 else 0
    for entry in entries:
        is_extra = entry.name.startswith(".") or entry.name.lower() in SYSTEM_FILES
        is_cycle = os.path.realpath(entry.path) in above
        if entry.is_dir() and not is_extra and not is_cycle:
            total += count_files(entry.path, above)
        else:
            total += 1
    return total
