"""Write generated images as files: one PNG file each, one NumPy archive, or one animation."""

import os
import zipfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.images import encode_animation, grid, png_text
from fewstep.temporary_folder import is_empty, temporary_folder

FRAME_MILLISECONDS = 40, 500
"""The shortest and the longest time that an animation shows a state."""
STATES_MILLISECONDS = 3000
"""Time in which an animation shows all states, within the times of each."""
FINAL_MILLISECONDS = 1500
"""Time for which an animation shows the images at its end."""
Batches = Iterable[tuple[range, Tensor]]
"""Images as uint8 (b, c, h, w) with their row numbers, as `drawing.generate` yields them."""


def check_image_folder(folder: Path) -> None:
    """Raise InputError unless `folder` is new or empty."""
    target = Path(os.path.realpath(folder))
    if target.exists() and not (target.is_dir() and is_empty(target)):
        raise InputError(
            f"{folder} is not an empty folder, and tools that read it would take what it contains "
            "for samples: name a new folder"
        )


def check_channels(shape: tuple[int, ...]) -> None:
    """Raise InputError unless samples of `shape` are grey or RGB images."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"samples of shape {shape} cannot be written as image files; only grey and RGB images "
            "of shape (1, h, w) and (3, h, w) can"
        )


@contextmanager
def _new_folder(folder: Path) -> Generator[Path]:
    """A temporary folder, which becomes `folder` when the block succeeds."""
    check_image_folder(folder)
    target = Path(os.path.realpath(folder))
    with temporary_folder(target) as temporary:
        yield temporary
        if not target.exists():
            temporary.rename(target)
        else:  # it may be the working directory or a disk, which cannot be replaced
            for file in sorted(temporary.iterdir()):
                file.rename(target / file.name)


def save_each(
    batches: Batches, folder: Path, *, prompts: Sequence[str] | None = None
) -> Iterator[int]:
    """Write images as `folder`/000000.png, 000001.png, ... Yields the number of images so far.

    `prompts` has the prompt of each row, which becomes the text `prompt` in its file. The files
    appear when all images are written, so that no tool reads a part of them.

    Raises: InputError if it exists and is not empty, or for images that are not grey or RGB.
    """
    with _new_folder(folder) as temporary:
        for rows, images in batches:
            check_channels(tuple(images.shape[1:]))
            for row, image in zip(rows, images, strict=True):
                pixels = image.movedim(0, -1).numpy()
                # compression by 6, the default, takes three times as long and saves a few percent
                picture = Image.fromarray(pixels if len(image) == 3 else pixels[..., 0])
                info = png_text({"prompt": prompts[row]} if prompts else {})
                picture.save(temporary / f"{row:06}.png", compress_level=1, pnginfo=info)
            yield rows.stop


def save_archive(
    batches: Batches,
    path: Path,
    *,
    count: int,
    labels: np.ndarray | None = None,
    prompts: Sequence[str] | None = None,
) -> Iterator[int]:
    """Write `count` images into a NumPy archive. Yields the number of images so far.

    As in the sample files of guided-diffusion, `arr_0` is uint8 (n, h, w, 3), with grey images as
    RGB, and `arr_1` contains the `labels` (n,). `prompts` (n,) is text. The file appears when all
    images are written.

    Raises: InputError for images that are not grey or RGB.
    """
    with atomic_write(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            for rows, images in batches:
                check_channels(tuple(images.shape[1:]))
                pixels = images.expand(-1, 3, -1, -1).movedim(1, -1).contiguous().numpy()
                if rows.start == 0:
                    shape = (count, *pixels.shape[1:])
                    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
                member.write(pixels.data)
                yield rows.stop
        columns = {"arr_1": labels, "prompts": None if prompts is None else np.array(prompts)}
        for name, values in columns.items():
            if values is not None:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, values)


def save_animation(
    states: Iterable[Tensor], path: Path, *, columns: int | None = None
) -> Iterator[int]:
    """Write `states`, each uint8 (n, c, h, w), as an endless GIF. Yields the number so far.

    Each frame is a `grid` in rows of `columns`; the last one is shown for longer. The file appears
    when all frames are written.

    Raises: InputError for images that are not grey or RGB.
    """
    frames: list[Image.Image] = []
    for images in states:
        check_channels(tuple(images.shape[1:]))
        frame = grid(images, columns=columns)
        frames.append(frame.convert("L") if images.shape[1] == 1 else frame)
        yield len(frames)
    least, most = FRAME_MILLISECONDS
    time = min(max(STATES_MILLISECONDS // max(len(frames) - 1, 1), least), most)
    times = [time] * (len(frames) - 1)
    content = encode_animation(frames, "GIF", milliseconds=[*times, FINAL_MILLISECONDS])
    with atomic_write(path) as file:
        file.write(content)
