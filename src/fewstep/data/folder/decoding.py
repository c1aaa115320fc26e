"""Decode image files into one array, and name all that cannot be decoded at once."""

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from fewstep.data.account import name_list
from fewstep.data.folder.files import formats_of
from fewstep.data.imageset import resize_to_square
from fewstep.errors import InputError
from fewstep.formatting import printable

MAX_PIXELS = 1 << 27
"""Largest number of pixels of an image; larger ones are refused before they are decoded."""
MAX_BYTES = 1 << 30
"""Largest size of an image file."""
LAYERED = frozenset({"MPO", "PSD"})
"""Formats whose further pictures are previews or layers of the first."""


@dataclass
class Decoder:
    """Decodes the images of files into one array. Several threads may do so."""

    paths: Sequence[Path]
    size: int | None
    images: UInt8[np.ndarray, "n h w 3"] | None = None
    """Allocated with the shape of the first image that can be decoded."""
    errors: dict[int, str] = field(default_factory=dict[int, str])
    """Why an image cannot be decoded, by its number."""
    sizes: dict[int, str] = field(default_factory=dict[int, str])
    """Width and height of the images whose size is not that of the first."""
    several_frames: set[int] = field(default_factory=set[int])
    """Numbers of the images that are the first of several in their file."""

    def decode(self, number: int) -> None:
        """Decode the image with this number, or record why that is not possible."""
        try:
            pixels, has_more = decode(self.paths[number], self.size)
        # Pillow raises many kinds of exceptions for damaged files
        except Exception as error:
            self.errors[number] = _reason(error)
            return
        if has_more:
            self.several_frames.add(number)
        if self.images is None:
            self.images = _allocate(len(self.paths), pixels)
        if pixels.shape == self.images.shape[1:]:
            self.images[number] = pixels
        else:
            self.sizes[number] = _size_text(pixels)

    def decode_all(self) -> None:
        """Decode every image."""
        numbers = iter(range(len(self.paths)))
        for number in numbers:  # until one can be decoded, whose shape the others must have
            self.decode(number)
            if self.images is not None:
                break
        # threads suffice: Pillow decodes without holding the interpreter's lock
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(self.decode, numbers):
                pass


def decode_all(
    paths: Sequence[Path], size: int | None
) -> tuple[UInt8[Tensor, "n 3 h w"], list[int]]:
    """The images of files, as RGB; and the numbers of those that are the first of several images in
    their file.

    Raises: InputError for all files that cannot be decoded, or, without `size`, that have another
    size than the first.
    """
    decoder = Decoder(paths, size)
    with warnings.catch_warnings():
        # of large sizes, which have a limit of our own, and of damage that does no harm
        warnings.simplefilter("ignore")
        decoder.decode_all()
    errors, sizes = decoder.errors, decoder.sizes
    if len(errors) == 1:
        number, reason = next(iter(errors.items()))
        raise InputError(
            f"{_text(paths[number])} is not a readable image ({reason}); replace or remove it"
        )
    if errors:
        names = [f"{_text(paths[number])} ({errors[number]})" for number in sorted(errors)]
        raise InputError(
            f"{len(errors):,} of {len(paths):,} images cannot be read: {name_list(names)}; "
            "replace or remove them"
        )
    images = decoder.images
    assert images is not None
    if sizes:
        first = next(number for number in range(len(paths)) if number not in sizes)
        names = [f"{paths[number].name} has {sizes[number]} pixels" for number in sorted(sizes)]
        raise InputError(
            f"{_text(paths[first].parent)}: {printable(name_list(names))}, but {paths[first].name} "
            f"has {_size_text(images[first])}; set size to resize all images"
        )
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return tensor, sorted(decoder.several_frames)


def decode(path: Path, size: int | None) -> tuple[UInt8[np.ndarray, "h w 3"], bool]:
    """An image as RGB, on white where it is transparent; and whether its file holds others too.

    Raises: many kinds of exceptions for files that cannot be decoded.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES >> 30} GiB")
    with Image.open(path, formats=formats_of(path.suffix)) as image:
        if not 0 < image.width * image.height <= MAX_PIXELS:
            raise ValueError(
                f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}"
            )
        opaque = _add_white_background(ImageOps.exif_transpose(image))
        has_more = image.format not in LAYERED and _has_next(image)
    return np.asarray(opaque if size is None else resize_to_square(opaque, size)), has_more


def _has_next(image: Image.Image) -> bool:
    try:
        image.seek(1)
    except Exception:  # EOFError at the end, and others for damage behind the first image
        return False
    return True


def _add_white_background(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        # Pillow would clip such pixels to 255 instead of scaling them
        raise ValueError(f"its pixels have more than 8 bits: its mode is {image.mode}")
    layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return white


def _allocate(count: int, pixels: np.ndarray) -> UInt8[np.ndarray, "n h w 3"]:
    try:
        return np.empty((count, *pixels.shape), np.uint8)
    except MemoryError as error:
        gigabytes = count * pixels.nbytes / 1e9
        raise InputError(
            f"{count:,} images of {_size_text(pixels)} pixels need {gigabytes:,.0f} GB of memory; "
            "set size to resize them"
        ) from error


def _reason(error: Exception) -> str:
    """What is wrong with a file, without its path."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "its content is no image of a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {MAX_PIXELS:,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(str(error)) or type(error).__name__


def _text(path: Path) -> str:
    return printable(str(path))


def _size_text(image: np.ndarray) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
