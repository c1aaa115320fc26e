"""Local folders of data and weights, and downloads of published files."""

import hashlib
import os
import sys
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.request import urlopen

from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.paths import expand_home

TIMEOUT = 10  # seconds to wait for a response; a whole file may take longer
_CHUNK = 1 << 20


def home() -> Path:
    """Folder of data sets and weights: $FEWSTEP_HOME, by default ~/.cache/fewstep."""
    return Path(expand_home(os.environ.get("FEWSTEP_HOME") or "~/.cache/fewstep"))


def cache() -> Path:
    """Folder of files that can be recreated: $FEWSTEP_CACHE, by default `cache` in `home()`."""
    folder = os.environ.get("FEWSTEP_CACHE")
    return Path(expand_home(folder)) if folder else home() / "cache"


def fetch(url: str, digest: str, target: Path, *, otherwise: str) -> None:
    """Download `url` to `target`, which is written only if the file has the published `digest`.

    `digest` is "md5:..." or "sha256:...", with all digits or only the first ones, as in file names
    of torch's hub. `otherwise` completes error messages: what to do without a network, such as "put
    A into B". If the download fails, the file and new folders are removed.

    Raises: InputError if the download fails or the file has another digest.
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
