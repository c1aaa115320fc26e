"""Folders of data and weights on this machine, and downloads of published files."""

import hashlib
import os
import sys
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.request import urlopen

from fewstep.errors import InputError
from fewstep.files import atomic_write

TIMEOUT = 10  # seconds without an answer, not for the whole file
_CHUNK = 1 << 20


def home() -> Path:
    """Folder of data sets and weights: $FEWSTEP_HOME, or ~/.cache/fewstep."""
    return Path(os.environ.get("FEWSTEP_HOME") or "~/.cache/fewstep").expanduser()


def cache() -> Path:
    """Folder of files that can be recreated: $FEWSTEP_CACHE, or `cache` in `home()`."""
    return Path(os.environ.get("FEWSTEP_CACHE") or home() / "cache").expanduser()


def fetch(url: str, digest: str, target: Path, *, otherwise: str) -> None:
    """Download `url` to `target`, written only if complete and of the published `digest`.

    `digest` is "md5:..." or "sha256:...", in full or, as in file names of torch's hub, its first
    digits. `otherwise` completes the error message for a machine without a network: "put A into B".
    A failing download leaves neither a file nor a new folder behind.

    Raises: InputError if the download fails or has another digest.
    """
    print(f"fewstep: downloading {url}", file=sys.stderr)
    try:
        with atomic_write(target) as file:
            kind, _, published = digest.partition(":")
            actual = _copy(url, file, kind)
            if not actual.startswith(published):
                raise InputError(
                    f"{url} has {kind.upper()} {actual} instead of the published {published}, so "
                    f"the file was removed; try again, or {otherwise}"
                )
    except (OSError, HTTPException) as error:
        raise InputError(f"cannot download {url} ({error}); go online, or {otherwise}") from error


def _copy(url: str, file: BinaryIO, kind: str) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    with urlopen(url, timeout=TIMEOUT) as response:
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()
