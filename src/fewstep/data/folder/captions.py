"""Captions of images: in a column of the label file, or in a text file beside each image."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from fewstep.data.account import as_text, name_list
from fewstep.data.folder.files import FolderFile
from fewstep.data.folder.labels import MISSING
from fewstep.data.folder.reading import read_text
from fewstep.data.folder.selection import Selection
from fewstep.errors import InputError
from fewstep.formatting import listing, printable

SUFFIX = ".txt"
MAX_BYTES = 1 << 20
"""Largest size of a file of captions."""
LIST = re.compile(r"\[\s*(['\"]).*\1\s*\]")
"""A list of strings, as Python and JSON write it."""
BOX = re.compile(r"[0-9]+( -?[0-9]+(\.[0-9]+)?(e-?[0-9]+)?){4,}", re.IGNORECASE)
"""A class and the numbers of a box or outline, as YOLO writes them."""
NO_TEXT = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters, and halves of characters."""


def split_captions(text: str, place: str) -> tuple[str, ...]:
    """The captions in a text: one a line, without empty lines and those that repeat another.

    Characters are composed (NFC), and several spaces count as one.

    Raises: InputError with the place of what is no caption: a missing value, a list, control
    characters.
    """
    captions: dict[str, None] = {}
    for line in text.splitlines():
        caption = unicodedata.normalize("NFC", " ".join(line.split()))
        if caption:
            _check_caption(caption, place)
            captions[caption] = None
    return tuple(captions)


def _check_caption(caption: str, place: str) -> None:
    quote = printable(caption if len(caption) < 60 else f"{caption[:60]}...")
    if caption in MISSING:
        raise InputError(
            f"{place}: the caption '{quote}' is a missing value; leave it empty for no caption"
        )
    if LIST.fullmatch(caption):
        raise InputError(
            f"{place}: the caption '{quote}' is a list; write one row for each caption, or a "
            "metadata.jsonl with lists"
        )
    if NO_TEXT.search(caption):
        raise InputError(
            f"{place}: the caption '{quote}' is not text without control characters; remove them"
        )


def add_captions(
    selection: Selection, folder: Path, files: Sequence[FolderFile], table: str | None
) -> tuple[Selection, list[FolderFile]]:
    """The selection with captions from the text files beside its images, if there are such files;
    and these, those of other splits included. `table` is the name of the label file.

    Raises: InputError for a text file that is none of captions, or that belongs to two images; and
    for captions both in the label file and in text files.
    """
    beside = _files_beside(selection, files)
    if beside and selection.captions is not None:
        first = next(iter(beside.values()))
        raise InputError(
            f"{printable(str(folder / first.name))} is a text beside an image, whose captions are "
            f"in {table}: keep one of them"
        )
    captions = selection.captions
    if beside:
        captions = [_read_captions(folder, beside.get(file)) for file in selection.files]
    notes = _caption_note(selection.files, captions)
    if captions is not None and not any(captions):
        captions = None
    selection = replace(selection, captions=captions, notes=(*selection.notes, *notes))
    return selection, [*beside.values()]


def _files_beside(
    selection: Selection, files: Sequence[FolderFile]
) -> dict[FolderFile, FolderFile]:
    """The text file of each image that has one, in all splits.

    Raises: InputError for two text files of one image, and for two images of one.
    """
    texts: dict[tuple[str, ...], FolderFile] = {}
    others: dict[FolderFile, FolderFile] = {}
    for file in files:
        if file.is_regular and file.parts[-1].lower().endswith(SUFFIX):
            first = texts.setdefault(_stem(file), file)
            if first != file:
                others[first] = file
    beside: dict[FolderFile, FolderFile] = {}
    owners: dict[FolderFile, FolderFile] = {}
    for image in (*selection.files, *chain.from_iterable(selection.other_splits.values())):
        text = texts.get(_stem(image))
        if text is None or text == image:
            continue
        beside[image] = text
        owner = owners.setdefault(text, image)
        if text in others:
            names = listing([printable(f.name) for f in (text, others[text])])
            raise InputError(f"{names} are texts of one image, {printable(image.name)}: merge them")
        if owner != image:
            names = listing([printable(file.name) for file in (owner, image)])
            raise InputError(
                f"{printable(text.name)} is beside two images, {names}: rename one of them"
            )
    return beside


def _stem(file: FolderFile) -> tuple[str, ...]:
    """The parts of a file without its suffix."""
    name = file.parts[-1]
    return (*file.parts[:-1], name.rpartition(".")[0] or name)


def _read_captions(folder: Path, file: FolderFile | None) -> tuple[str, ...]:
    """The captions in a text file; none without a file."""
    if file is None:
        return ()
    path = folder.joinpath(*file.parts)
    captions = split_captions(read_text(path, limit=MAX_BYTES), printable(str(path)))
    box = next(filter(BOX.fullmatch, captions), None)
    if box:
        raise InputError(
            f"{printable(str(path))} has the line {box!r}, which seems to be a box around an "
            "object, as of YOLO, and no caption: move such files away"
        )
    return captions


def _caption_note(
    files: Sequence[FolderFile], captions: Sequence[tuple[str, ...]] | None
) -> tuple[str, ...]:
    """A note if some images have captions and some have none."""
    missing = [as_text(f.name) for f, own in zip(files, captions or (), strict=False) if not own]
    if not missing:
        return ()
    verb = "has" if len(missing) == 1 else "have"
    return (f"{len(missing):,} of {len(files):,} images {verb} no caption ({name_list(missing)})",)
