"""What a path on this machine holds: for error messages that tell common mix-ups apart, and to read
files of unknown origin within bounds."""

import errno
import os
import stat
import tempfile
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal

from fewstep.errors import InputError

MAX_TEXT = 64 * 2**20
"""Largest size in bytes of a text file; larger ones are refused before they are read."""

Kind = Literal["run", "store", "diffusers", "images", "recipe", "checkpoint"]

IMAGE_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .avif .bmp .gif .jp2 .ppm .pgm .pnm .tga .tif .tiff".split()
)
"""The commonest, by which a folder is identified; the reader of folders knows all of Pillow's."""
PICTURES: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".webp": {"format": "WEBP", "lossless": True},
    ".bmp": {"format": "BMP"},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
}
"""For each suffix of a picture that can be written, Pillow's settings of its format."""
NAMES: dict[Kind, str] = {
    "run": "a run",
    "store": "a store of recorded pairs",
    "diffusers": "a checkpoint of diffusers",
    "images": "a folder of images",
    "recipe": "a recipe",
    "checkpoint": "a checkpoint of another project",
}
_MARKS: dict[Kind, tuple[tuple[str, bytes], ...]] = {
    "run": (("recipe.toml", b""), ("model.safetensors", b"fewstep")),
    "store": (("manifest.json", b'{\n "content"'), ("plan.json", b'{\n "content"')),
    "diffusers": tuple(
        (file, b'"_class_name"')
        for file in ("model_index.json", "unet/config.json", "unet_ema/config.json", "config.json")
    ),
}
"""For each kind of folder, its files, and what their first bytes contain."""
_ADVICE: dict[tuple[Kind, Kind], str] = {
    ("run", "store"): "students read it by pairs.load={path}",
    ("run", "diffusers"): "write diffusers:{path}",
    ("run", "images"): "write folder:{path} where a data set is named",
    ("run", "recipe"): "train it with `fewstep train {path} --out DIR`, and give that DIR",
    ("store", "run"): "record pairs with `fewstep record {path} --out DIR`, and give that DIR",
    ("store", "diffusers"): (
        "record pairs with `fewstep record diffusers:{path} --out DIR`, and give that DIR"
    ),
    ("store", "images"): "pairs of noise and image are recorded by `fewstep record RUN --out DIR`",
    ("store", "recipe"): "pairs are recorded by `fewstep record RUN --out DIR`; give that DIR",
    ("images", "run"): "give the folder of the images themselves",
    ("images", "store"): "give the folder of the images themselves",
    ("images", "diffusers"): "give the folder of the images themselves",
    ("images", "recipe"): "give the folder of the images themselves",
    ("checkpoint", "run"): "write {path} alone",
    ("checkpoint", "store"): "students read it by pairs.load={path}",
    ("checkpoint", "diffusers"): "write diffusers:{path}",
    ("checkpoint", "images"): "write folder:{path} where a data set is named",
    ("checkpoint", "recipe"): "train it with `fewstep train {path} --out DIR`, and give that DIR",
    ("recipe", "run"): "its recipe is {path}/recipe.toml",
    ("recipe", "store"): "a recipe names it by pairs.load={path}",
    ("recipe", "diffusers"): "a recipe names it by teacher.load=diffusers:{path}",
    ("recipe", "images"): "a recipe names it by data.name=folder data.path={path}",
}
"""What to do, by the expected kind and the kind that the path has."""


def identify(path: Path) -> Kind | None:
    """The kind of a file or folder; None if it is missing, cannot be read, or is of no kind.

    Checkpoints of other projects are not identified, but for those of diffusers.
    """
    try:
        return _identify(path)
    except OSError:
        return None


def _identify(path: Path) -> Kind | None:
    if path.suffix == ".toml" and path.is_file():
        return "recipe"
    if not path.is_dir():
        return None
    for kind, marks in _MARKS.items():
        if any(_contains(path / file, content) for file, content in marks):
            return kind
    if _has_images(path):
        return "images"
    folders = (entry for entry in path.iterdir() if not entry.name.startswith("."))
    return "images" if any(_has_images(entry) for entry in folders if entry.is_dir()) else None


def _has_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.iterdir())


def _contains(file: Path, content: bytes) -> bool:
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        return content in stream.read(1 << 16)


def check_kind(path: str | Path, expected: Kind) -> None:
    """Raise InputError for a path of another kind than `expected`; accept one of no kind."""
    kind = identify(Path(path))
    if kind is None or kind == expected:
        return
    advice = _ADVICE[expected, kind].format(path=path)
    raise InputError(f"{path} is {NAMES[kind]}, not {NAMES[expected]}: {advice}")


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading in binary, without waiting for a pipe's or a device's other end.

    Raises: InputError for a folder, pipe, socket or device; OSError as `open`.
    """
    # without this flag, the system waits here until a pipe has a writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        check_regular(path)  # a socket cannot be opened at all
        if error.errno == errno.ELOOP:
            raise InputError(f"{path} is a link that leads to itself: replace it") from error
        raise
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, *, limit: int = MAX_TEXT) -> bytes:
    """The content of a file.

    Raises: InputError for a folder, pipe, socket or device, and, before it is read, for a file of
    more than `limit` bytes; OSError as `open`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise InputError(
                f"{path} has {size:,} bytes, and such a file has at most {limit:,}: give another"
            )
        return file.read(size or limit)


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, without a byte-order mark.

    Raises: InputError for another encoding, and as `read_regular`; OSError as `open`.
    """
    content = read_regular(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        problem = (
            "UTF-16" if wide else f"byte {content[error.start]:#04x} at position {error.start}"
        )
        raise InputError(f"{path} is not UTF-8 text ({problem}): save it as UTF-8") from error


def expand_home(address: str) -> str:
    """A path, or address `source:PATH`, whose path has the home folder in place of a leading ~.

    A name that exists as it stands is unchanged, and so is that of an unknown user.
    """
    source, colon, rest = address.partition(":")
    if colon and rest.startswith("~") and not os.path.lexists(address):
        return f"{source}:{os.path.expanduser(rest)}"
    return address if os.path.lexists(address) else os.path.expanduser(address)


def check_writable(path: Path, option: str) -> None:
    """Raise InputError if the file `path`, given by `option`, cannot be written; changes nothing.

    Called before long work. A device or pipe, such as /dev/stdout, is accepted.
    """
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; give the name of a file in it")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{option} {path} cannot be written: change its permissions")
    if not path.exists() or path.is_file():
        _check_parent(path, path.parent, option)


def check_picture(path: Path, option: str) -> None:
    """`check_writable` for a picture, which also needs the suffix of a format in PICTURES."""
    if path.suffix.lower() not in PICTURES:
        suffixes = ", ".join(PICTURES)
        raise InputError(f"{option} {path} needs the suffix of a picture: one of {suffixes}")
    check_writable(path, option)


def check_writable_folder(path: Path, option: str) -> None:
    """Raise InputError if the folder `path` cannot be made, or no file in it; changes nothing."""
    _check_parent(path, path, option)


def _check_parent(path: Path, existing: Path, option: str) -> None:
    """Raise InputError if no file can be made in the first of `existing` and its parents that
    exists."""
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        noun = "a file" if existing.exists() else "a broken link"
        place = f"{path}" if existing == path else f"{path}: {existing}"
        raise InputError(f"{option} {place} is {noun}, not a folder; give another")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise InputError(
            f"{option} {path}: {existing} cannot be written ({error.strerror}); give another"
        ) from error


def check_regular(path: str | Path) -> None:
    """Raise InputError for a folder, pipe, socket or device; accept a file or nothing."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # missing, forbidden, or no name that a file can have
        return
    _check_mode(path, mode)


def _check_mode(path: str | Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(mode), "a device")
    raise InputError(f"{path} is {kind}, and a file is needed here: give the path of a file")
