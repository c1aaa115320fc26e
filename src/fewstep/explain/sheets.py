"""Sheets of images in PNG files, with numbers above each column and a name beside each row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewstep.files import atomic_write
from fewstep.image_files import check_channels
from fewstep.images import grid

TILE = 64
"""Images are enlarged by the largest whole factor up to this width in pixels."""
GAP = 4
TEXT = 13
"""Least size of the text in pixels."""
LABELS = 58
"""Width of the names beside the rows, for text of the least size."""
INK, PAPER = (31, 35, 40), (255, 255, 255)


@dataclass(frozen=True)
class Layout:
    """Where the images of a sheet are, in pixels."""

    scale: int
    """Factor by which images are enlarged."""
    width: int
    height: int
    """Size of an enlarged image."""
    text: int
    """Size of the font."""
    lines: int
    """Number of lines above the columns."""

    @property
    def line(self) -> int:
        """Height of a line of text."""
        return round(1.35 * self.text)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """(left, top) of the image in a row and column."""
        left = LABELS * self.text // TEXT + column * (self.width + GAP)
        return left, GAP + self.line * self.lines + row * (self.height + GAP)


def layout(shape: Sequence[int], lines: int) -> Layout:
    """The layout of a sheet of images of `shape` (c, h, w), with `lines` above the columns."""
    scale = max(1, TILE // shape[2])
    width, height = shape[2] * scale, shape[1] * scale
    return Layout(scale, width, height, max(TEXT, width // 6), lines)


def draw_sheet(
    rows: Sequence[Sequence[Tensor | None]],
    names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    note: str = "",
) -> Image.Image:
    """Draw `rows` of images, uint8 (c, h, w) or None for an empty place, with a name for each row.

    `columns` has the texts above the columns, line by line; `note` is a line at the foot.

    Raises: InputError for images that are not grey or RGB.
    """
    first = next(image for row in rows for image in row if image is not None)
    check_channels(tuple(first.shape))
    place = layout(first.shape, len(columns))
    font = _font(place.text)
    width, height = place.corner(len(rows), len(rows[0]))
    sheet = Image.new("RGB", (width, height + place.line * bool(note)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (name, texts) in enumerate(columns.items()):
        y = GAP + i * place.line
        draw.text((GAP, y), name, INK, font)
        for j, text in enumerate(texts):
            x = place.corner(0, j)[0] + place.width / 2
            draw.text((x, y), text, INK, font, anchor="ma")
    for i, (name, row) in enumerate(zip(names, rows, strict=True)):
        middle = place.corner(i, 0)[1] + place.height / 2
        draw.text((GAP, middle), name, INK, font, anchor="lm")
        for j, image in enumerate(row):
            if image is not None:
                sheet.paste(grid(image[None], columns=1, scale=place.scale), place.corner(i, j))
    if note:
        draw.text((GAP, height), note, INK, font)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as a PNG file."""
    with atomic_write(path) as file:
        sheet.save(file, format="PNG", optimize=True)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """A font that is the same on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
