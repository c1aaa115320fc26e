"""Noto Emoji at 32 x 32 pixels with captions, which come with the package. README.md has the
licence.
"""

import csv
import io
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from fewstep.data.emoji.split import is_in_test, read_code_points, tones_in, without_tones
from fewstep.data.imageset import ImageSet, check_split
from fewstep.errors import InputError

FOLDER = Path(__file__).parent
SHEET = FOLDER / "emoji.webp"
"""All images in one, row by row, in the order of the table; the last row is filled with white."""
TABLE = FOLDER / "metadata.csv"
"""File name, caption and group of each image."""
SIZE = 32
"""Side of an image in pixels."""
COLUMNS = 64
"""Images in a row of the sheet."""


def read_emoji(split: str) -> ImageSet:
    """3,414 emojis of 32 x 32 in 9 groups, with the names of Unicode's CLDR as captions.

    `test` has 208 compositions of a person and a skin tone, both of which are in `train`, but never
    together. The column `base` is the caption without skin tones. `tone` is empty, or one of light,
    medium-light, medium, medium-dark and dark, or two different ones such as "light, dark". Images
    are RGB, and white where the original is transparent.
    """
    check_split("emoji", split, ["train", "test"])
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [(row["file_name"], row["text"], row["group"]) for row in csv.DictReader(file)]
    emojis = [read_code_points(name) for name, _, _ in rows]
    captions = {emoji: text for emoji, (_, text, _) in zip(emojis, rows, strict=True)}
    class_names = sorted({group for _, _, group in rows})
    indices = [i for i, emoji in enumerate(emojis) if is_in_test(emoji) == (split == "test")]
    images = torch.from_numpy(_read_sheet(len(rows))[indices])
    return ImageSet(
        "emoji",
        images.permute(0, 3, 1, 2).contiguous(),
        torch.tensor([class_names.index(rows[i][2]) for i in indices]),
        tuple(class_names),
        {
            "file_name": tuple(rows[i][0] for i in indices),
            "base": tuple(captions[without_tones(emojis[i])] for i in indices),
            "tone": tuple(", ".join(dict.fromkeys(tones_in(emojis[i]))) for i in indices),
        },
        captions=tuple((rows[i][1],) for i in indices),
    )


def _read_sheet(count: int) -> UInt8[np.ndarray, "count 32 32 3"]:
    """The images of the sheet.  Raises: InputError if Pillow cannot decode it."""
    try:
        # read first: a file that Pillow opens by its path would stay open after an error
        with Image.open(io.BytesIO(SHEET.read_bytes()), formats=["WEBP"]) as image:
            sheet = np.asarray(image.convert("RGB"))
    except (OSError, KeyError) as error:
        raise InputError(
            f"{SHEET} cannot be decoded ({error}); install a Pillow that decodes WebP, or fewstep "
            "again"
        ) from error
    tiles = sheet.reshape(-1, SIZE, COLUMNS, SIZE, 3).swapaxes(1, 2)
    return tiles.reshape(-1, SIZE, SIZE, 3)[:count]
