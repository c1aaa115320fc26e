"""Find every file below a folder, follow links, and say of each what kind of file it is."""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from PIL import Image

from fewstep.errors import InputError
from fewstep.formatting import printable

Kind = Literal["image", "label file", "extra", "other"]

LABEL_FILES = ("metadata.csv", "metadata.tsv", "metadata.jsonl", "dataset.json")
"""Names of label files, in lower case."""
SYSTEM_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found"}
    | {"$recycle.bin", "system volume information"}
)
"""What operating systems put into folders, in lower case; the folders among them are not read."""
READMES = frozenset(
    "authors changelog citation copying copyright license licence notice readme".split()
)
README_SUFFIXES = frozenset({"", ".bib", ".cff", ".htm", ".html", ".md", ".pdf", ".rst", ".txt"})
IDENTIFIED_ONLY = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats that Pillow identifies but does not decode, or only with the help of another program."""
COMMON = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that files have under the suffixes of others too."""
MAX_REPEATS = 10_000
"""Largest number of folders that are found again through links."""


@dataclass(frozen=True)
class FolderFile:
    """A file or link in the folder, or a folder that is not searched."""

    parts: tuple[str, ...]
    """Names of the folders that lead to it, and its own."""
    kind: Kind
    reason: str = ""
    """Kind of an extra; or why it is left out, unless it is an image or label file."""
    identity: tuple[int, int] = (0, 0)
    """Device and inode: those of two links to one file are equal."""
    bytes: int = 0

    @cached_property
    def name(self) -> str:
        """Its path, relative to the folder, with slashes."""
        return "/".join(self.parts)

    @property
    def is_regular(self) -> bool:
        """Whether it is a file that can be read, not a device, a broken link or a folder."""
        return self.identity != (0, 0)


@cache
def image_formats() -> Mapping[str, str]:
    """The format of each suffix that Pillow decodes, in lower case, such as ".jpg" of "JPEG"."""
    Image.preinit()  # the commonest formats first, as in Pillow
    Image.init()
    decoded = Image.OPEN.keys() - IDENTIFIED_ONLY
    extensions = Image.registered_extensions().items()
    return {suffix: name for suffix, name in extensions if name in decoded}


def formats_of(suffix: str) -> tuple[str, ...]:
    """The formats that a file with this suffix may have: its own, and those that are safely
    recognized by their content."""
    formats = image_formats()
    common = (name for name in COMMON if name in formats.values())
    return tuple(dict.fromkeys([*common, *filter(None, [formats.get(suffix.lower())])]))


def find_files(folder: Path) -> list[FolderFile]:
    """Every file below `folder`, sorted by its parts. Links are followed.

    Raises: InputError for a folder that cannot be read, and for links that multiply without end.
    """
    # a link to a folder above this one would lead here again, after everything else in it
    top = folder.resolve()
    above = frozenset(_identities((top, *top.parents)))
    visited = {*above}
    repeats = 0
    files: list[FolderFile] = []
    stack: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [((), above)]
    while stack:
        parts, above = stack.pop()
        entries = [*_scan(folder, parts)]
        if parts and not entries:
            files.append(FolderFile(parts, "other", "without any file in it"))
        for entry in entries:
            place = (*parts, entry.name)
            file, identity = _classify(entry, place, above)
            if file:
                files.append(file)
                continue
            repeats += identity in visited
            visited.add(identity)
            if repeats > MAX_REPEATS:
                raise InputError(
                    f"links in {printable(str(folder))} lead to the same folders more than "
                    f"{MAX_REPEATS:,} times, such as {printable('/'.join(place))}: remove them"
                )
            stack.append((place, above | {identity}))
    return sorted(files, key=lambda file: file.parts)


def _identities(paths: Iterable[Path]) -> Iterator[tuple[int, int]]:
    for path in paths:
        with suppress(OSError):  # a folder far above may be forbidden
            status = path.stat()
            yield status.st_dev, status.st_ino


def _scan(folder: Path, parts: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    path = folder.joinpath(*parts)
    try:
        with os.scandir(path) as entries:
            yield from entries
    except OSError as error:
        raise InputError(
            f"the folder {printable(str(path))} cannot be read ({error.strerror}): change its "
            "permissions, or move it out of the folder of images"
        ) from error


def _classify(
    entry: os.DirEntry[str], parts: tuple[str, ...], above: frozenset[tuple[int, int]]
) -> tuple[FolderFile | None, tuple[int, int]]:
    """The file of an entry, or None for a folder to search; and its identity."""
    if entry.name.startswith("."):
        return FolderFile(parts, "extra", "hidden", *_regular(entry)), (0, 0)
    if entry.name.lower() in SYSTEM_FILES:
        return FolderFile(parts, "extra", "of the operating system"), (0, 0)
    try:
        status = os.stat(entry.path)  # on Windows, that of the entry has no inode
    except OSError:  # links that lead nowhere, or to themselves
        return FolderFile(parts, "other", "behind a broken link"), (0, 0)
    identity = (status.st_dev, status.st_ino)
    if stat.S_ISDIR(status.st_mode):
        is_cycle = identity in above
        cycle = FolderFile(parts, "other", "linked to a folder above") if is_cycle else None
        return cycle, identity
    if not stat.S_ISREG(status.st_mode):
        return FolderFile(parts, "other", "of a special kind (pipe, socket or device)"), identity
    kind, reason = _kind(entry.name)
    return FolderFile(parts, kind, reason, identity, status.st_size), identity


def _regular(entry: os.DirEntry[str]) -> tuple[tuple[int, int], int]:
    """Identity and size of a regular file; zeros for anything else."""
    try:
        status = os.stat(entry.path)
    except OSError:
        return (0, 0), 0
    is_regular = stat.S_ISREG(status.st_mode)
    return ((status.st_dev, status.st_ino), status.st_size) if is_regular else ((0, 0), 0)


def _kind(name: str) -> tuple[Kind, str]:
    """Kind of a regular file by its name, and the reason of what is not read."""
    stem, dot, suffix = name.lower().rpartition(".")
    stem, suffix = (stem, dot + suffix) if stem else (name.lower(), "")
    if suffix in image_formats():
        return "image", ""
    if name.lower() in LABEL_FILES:
        return "label file", ""
    if stem in READMES and suffix in README_SUFFIXES:
        return "extra", "readme or licence"
    return "other", f"with the suffix {printable(suffix)}" if suffix else "without a suffix"
