"""Names in UTF-8 for files of other names, which libraries written in Rust need."""

import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from fewstep.paths import open_regular


@contextmanager
def utf8_source(path: Path) -> Generator[str]:
    """A name under which such a library can read the file `path`, in this block."""
    if _is_utf8(path):
        yield str(path)
        return
    with open_regular(path) as file:
        yield f"/dev/fd/{file.fileno()}"


@contextmanager
def utf8_target(path: Path) -> Generator[str]:
    """A name under which such a library can create the file `path`, in this block."""
    if _is_utf8(path):
        yield str(path)
        return
    name = f".{secrets.token_hex(8)}.tmp"
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        yield f"/dev/fd/{folder}/{name}"
        os.replace(path.with_name(name), path)
    finally:
        path.with_name(name).unlink(missing_ok=True)
        os.close(folder)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # Python keeps other bytes of names as surrogates
        return False
    return True
