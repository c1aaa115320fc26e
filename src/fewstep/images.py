"""Images at the edge: [-1, 1] inside, uint8 in files; grids to look at."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def to_uint8(images: Float[Tensor, "b *shape"]) -> UInt8[Tensor, "b *shape"]:
    """[-1, 1] to 0 … 255, clipped, to the nearest."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def grid(
    images: UInt8[Tensor, "n c h w"], *, columns: int | None = None, scale: int | None = None
) -> Image.Image:
    """All images in rows of `columns` (default: as square as it gets), two pixels apart.

    Each pixel becomes `scale` pixels; by default so many that a tile is at least 64 wide.
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


def save_grid(images: UInt8[Tensor, "n c h w"], path: Path, *, columns: int | None = None) -> None:
    """The grid as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images, columns=columns).save(path, format="PNG")
