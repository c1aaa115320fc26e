"""Where data and weights lie on this machine, and how a published file gets there."""

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
    """The folder of data sets and weights: $FEWSTEP_HOME, or ~/.cache/fewstep."""
    return Path(os.environ.get("FEWSTEP_HOME") or "~/.cache/fewstep").expanduser()


def cache() -> Path:
    """The folder of what can be made again: $FEWSTEP_CACHE, or `cache` in `home()`."""
    return Path(os.environ.get("FEWSTEP_CACHE") or home() / "cache").expanduser()


def fetch(url: str, digest: str, target: Path, *, otherwise: str) -> None:
    """Download `url` to `target`, which appears only when whole and of the published `digest`.

    A digest is "md5:..." or "sha256:...", whole or, as in file names of torch's hub, its first
    digits. `otherwise` tells a person without a network what to do, after "or": "put A into B".
    """
    print(f"fewstep: downloading {url}", file=sys.stderr)
    try:
        with atomic_write(target) as file:
            kind, _, published = digest.partition(":")
            found = _copy(url, file, kind)
            if not found.startswith(published):
                raise InputError(
                    f"{url} has {kind.upper()} {found} instead of the published {published}, so it "
                    f"was not kept; try again, or {otherwise}"
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
