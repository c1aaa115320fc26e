"""Files of tensors whose damage is found: safetensors, with digests in one metadata key.

safetensors has no checksum of its own. The key holds a JSON object, in which `tensors` is the
SHA-256 of all tensors with their names, dtypes and shapes, and `digest` that of the object itself.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import InputError
from fewstep.files import atomic_replace, tensor_digest
from fewstep.paths import open_regular
from fewstep.utf8_paths import utf8_source, utf8_target

# a single metadata key: safetensors writes several in random order, so equal weights would not
# give equal files
KEY = "fewstep"
DIGESTS = ("tensors", "digest")
MAX_HEADER = 16 * 2**20
"""Largest header in bytes: it has about 100 bytes for each tensor."""
REMEDY = "copy the file again from where it is intact, or write it anew"


class NotOurs(Exception):
    """Raised for a file without the JSON object, which another program wrote."""


class Unreadable(NotOurs):
    """Raised for a file that is missing or forbidden, or that safetensors does not read."""


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object with their digests; equal contents give equal bytes."""
    contents = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = _sealed_text(note, tensor_digest(contents))
    # safetensors replaces the file, by one that only its owner can read, and does not flush it;
    # `safetensors.torch.save` would copy all weights in memory
    with atomic_replace(path) as file, utf8_target(file) as name:
        save_file(contents, name, metadata={KEY: text})


def read_tensor_file(
    path: Path, *, verify: bool = True, remedy: str = REMEDY
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON object that `write_tensor_file` wrote, without the digests.

    Without `verify`, digests are not compared, and may be missing. `remedy` ends error messages:
    what to do about a damaged file.

    Raises: InputError for a damaged file, NotOurs or Unreadable for any other.
    """
    check_header(path)
    try:
        with utf8_source(path) as name, safe_open(name, framework="pt") as file:
            note = _parse(file.metadata(), path, verify, remedy)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise Unreadable(str(error)) from error
    if verify and note["tensors"] != tensor_digest(tensors):
        raise InputError(f"{path} is damaged: its tensors do not match their SHA-256: {remedy}")
    return tensors, _without_digests(note)


def read_note(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """The JSON object of such a file, without the digests; its tensors are not read.

    Raises: as `read_tensor_file`.
    """
    check_header(path)
    try:
        with utf8_source(path) as name, safe_open(name, framework="pt") as file:
            return _without_digests(_parse(file.metadata(), path, True, remedy))
    except (SafetensorError, OSError) as error:
        raise Unreadable(str(error)) from error


def check_header(path: Path) -> None:
    """Refuse a file without a header that its size allows, before more than its length is read.

    Raises: InputError for a folder, pipe or device, Unreadable for any other such file.
    """
    try:
        with open_regular(path) as file:
            # some files of /proc have nothing to read yet
            length, size = file.read(8) or b"", os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error
    header = int.from_bytes(length, "little")
    if len(length) < 8 or header > min(size - 8, MAX_HEADER):
        raise Unreadable(f"its header has {header:,} bytes, and the file {size:,}")


def _parse(
    metadata: Mapping[str, str] | None, path: Path, verify: bool, remedy: str
) -> dict[str, Any]:
    text = (metadata or {}).get(KEY)
    if text is None:
        raise NotOurs("its metadata have no key of fewstep")
    try:
        note: Any = json.loads(text)
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise InputError(f"{path} is damaged: its metadata are not a JSON object: {remedy}")
    note = cast(dict[str, Any], note)
    if not verify:
        return note
    missing = [name for name in DIGESTS if name not in note]
    if missing:
        raise InputError(
            f"{path} has no digest of its {missing[0]}: it is damaged, or an early version wrote "
            f"it: {remedy}; load(…, verify=False) reads it unchecked"
        )
    # as text, because the same values in another form are damage too
    if _sealed_text(_without_digests(note), note["tensors"]) != text:
        raise InputError(f"{path} is damaged: its metadata do not match their SHA-256: {remedy}")
    return note


def _sealed_text(note: Mapping[str, Any], tensors: str) -> str:
    """The JSON text of the object with both digests."""
    # through JSON, so that it has the values that will be read
    content = json.loads(json.dumps({**note, "tensors": tensors}))
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "digest": digest}, sort_keys=True)


def _without_digests(note: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in note.items() if key not in DIGESTS}
