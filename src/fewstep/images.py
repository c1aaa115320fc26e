"""Convert images between [-1, 1] and uint8, and arrange them in grids."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Float32, Shaped, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.paths import PICTURES, read_regular

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"


def to_uint8(images: Float[Tensor, "b *shape"]) -> UInt8[Tensor, "b *shape"]:
    """Map [-1, 1] to 0 … 255. Values outside are clipped; others are rounded to the nearest.

    Raises: InputError for NaN and infinite values, which would become black or white pixels.
    """
    if not bool(images.isfinite().all()):
        raise InputError("images with NaN or infinite values cannot be converted to uint8")
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(images: Shaped[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """Map 0 … 255, of uint8 or any other dtype, to [-1, 1]."""
    return images.float() / 127.5 - 1


def grid(
    images: UInt8[Tensor, "n c h w"], *, columns: int | None = None, scale: int | None = None
) -> Image.Image:
    """Arrange images in rows of `columns`, with two white pixels between them.

    By default the grid is about square. `scale` is the integer factor by which images are enlarged,
    by default the largest one up to a width of 64 pixels.
    """
    n, c, h, w = images.shape
    columns = columns or max(1, round(n**0.5))
    scale = scale or max(1, 64 // w)
    tiles = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    tiles = tiles.expand(-1, 3, -1, -1) if c == 1 else tiles
    gap, height, width = 2, h * scale, w * scale
    rows = -(-n // columns)
    sheet = torch.full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), 255)
    sheet = sheet.to(torch.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[:, top : top + height, left : left + width] = tile
    return Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())


def save_grid(
    images: UInt8[Tensor, "n c h w"],
    path: Path,
    *,
    columns: int | None = None,
    note: Mapping[str, str] | None = None,
) -> None:
    """Write `grid(images)` to `path`, in the format that its suffix names in `PICTURES`.

    A PNG file also has the texts of `note`, by keyword.
    """
    settings = dict(PICTURES[path.suffix.lower()])
    if settings["format"] == "PNG":
        settings["pnginfo"] = png_text(note or {})
    with atomic_write(path) as file:
        grid(images, columns=columns).save(file, **settings)


def encode_animation(
    frames: Sequence[Image.Image], kind: Literal["GIF", "WebP"], *, milliseconds: Sequence[int]
) -> bytes:
    """An endless animation of `frames` (at least one), each shown for its `milliseconds`.

    WebP is without loss, and so is GIF for grey frames; frames in colour have 256 colours each. A
    frame that is equal to the one before it only lengthens that one's time.
    """
    # disposal 1 leaves a frame as the background of the next, which then stores what differs
    settings: dict[str, Any] = {"lossless": True} if kind == "WebP" else {"disposal": 1}
    settings |= {"duration": [*milliseconds], "append_images": frames[1:]}
    file = io.BytesIO()
    frames[0].save(file, format=kind, save_all=True, loop=0, **settings)
    return file.getvalue()


def png_text(note: Mapping[str, str]) -> PngInfo:
    """Texts of a PNG file by keyword, for `pnginfo` of Pillow's `save`."""
    info = PngInfo()
    for keyword, text in note.items():
        info.add_itxt(keyword, text)
    return info


def read_picture(path: Path) -> bytes:
    """The content of a PNG file, compared with its checksums.

    Raises: InputError for a damaged file.
    """
    content = read_regular(path)
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            picture.verify()
    except Exception as error:  # Pillow raises errors of many types for damaged files
        raise InputError(f"{path} is damaged ({error}): delete it") from error
    if not content.endswith(PNG_END):  # beyond which Pillow compares nothing
        raise InputError(f"{path} is damaged (it does not end as a PNG file): delete it")
    return content
