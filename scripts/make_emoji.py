"""Make the data set `emoji` of the package from an archive of Noto Emoji images.

    python scripts/make_emoji.py [ARCHIVE] [--out DIR]

ARCHIVE is a zip file of `metadata.csv` (columns file_name, text, group) and the images that it
lists, 32 x 32 pixels each; by default ../shared/data/noto-emoji-32.zip. The files go to
`src/fewstep/data/emoji/`, or to DIR. Takes a minute.
"""

import argparse
import csv
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.data.emoji import COLUMNS, FOLDER, SHEET, SIZE, TABLE

ROOT = Path(__file__).parent.parent
ARCHIVE = ROOT.parent / "shared" / "data" / "noto-emoji-32.zip"


def make(archive: Path, out: Path) -> None:
    """Write the sheet and the table of `archive` into the folder `out`."""
    with zipfile.ZipFile(archive) as file:
        table = file.read("metadata.csv")
        rows = csv.DictReader(io.StringIO(table.decode("utf-8")))
        images = [read_image(file.read(row["file_name"])) for row in rows]
    blank = np.full((SIZE, SIZE, 3), 255, np.uint8)
    images += [blank] * (-len(images) % COLUMNS)
    tiles = np.stack(images).reshape(-1, COLUMNS, SIZE, SIZE, 3)
    sheet = Image.fromarray(tiles.swapaxes(1, 2).reshape(-1, COLUMNS * SIZE, 3))
    # the slowest and smallest of lossless WebP
    sheet.save(out / SHEET.name, "WEBP", lossless=True, quality=100, method=6)
    (out / TABLE.name).write_bytes(table)


def read_image(content: bytes) -> np.ndarray:
    """Pixels of an image on white, as those of a folder of images."""
    with Image.open(io.BytesIO(content)) as image:
        layer = image.convert("RGBA")
    white = Image.new("RGB", layer.size, "white")
    white.paste(layer, mask=layer.getchannel("A"))
    return np.asarray(white)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, nargs="?", default=ARCHIVE)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(argv)
    make(options.archive, options.out)


if __name__ == "__main__":
    main()
