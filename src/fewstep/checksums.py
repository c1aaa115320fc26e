"""Text files that fewstep reads back: lines of JSON, JSON objects and TOML, with checksums.

A checksum is the CRC-32 of the text before it, in eight hexadecimal digits, which differs for any
changed byte. People can read the files; a line of JSON has it as its last key.
"""

import json
import os
import re
import shlex
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from fewstep.errors import InputError
from fewstep.paths import check_regular, read_regular

KEY = "check"
MAX_LOG = 1 << 30
"""Largest size of a file of lines, in bytes."""
_TOML_END = re.compile(r"# check: ([0-9a-f]{8})\n\Z")


def json_line(table: Mapping[str, Any]) -> bytes:
    """One line of JSON with a checksum."""
    return (json.dumps({**table, KEY: _check(json.dumps(dict(table)))}) + "\n").encode()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of `json_line`s, without a last line that a crash cut off.

    Returns [] for a file that does not exist.  Raises: InputError for a damaged line.
    """
    try:
        content = read_regular(path, limit=MAX_LOG)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return parse_json_lines(content, path)


def parse_json_lines(content: bytes, path: Path, *, first: int = 1) -> list[dict[str, Any]]:
    """The objects in a part of a file that starts at line number `first`; see `read_json_lines`."""
    *lines, last = content.split(b"\n")
    if last and (_parse(last + b"\n") or not _is_cut(last)):
        lines.append(last)
    return [_table(line, path, number) for number, line in enumerate(lines, first)]


def append_json_line(path: Path, table: Mapping[str, Any]) -> None:
    """Append a `json_line`, in one write: several processes may do so at the same time.

    A last line that a crash cut off is removed first.
    """
    check_regular(path)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    with open(descriptor, "r+b", buffering=0) as file:
        _lock(file)
        _repair_end(file)
        file.write(json_line(table))


def with_check(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a JSON file, with a checksum of its values."""
    return {**table, KEY: _check(json.dumps(table, sort_keys=True))}


def read_checked_json(path: Path, remedy: str) -> dict[str, Any]:
    """The table of a JSON file that `with_check` completed, without the checksum.

    `remedy` ends error messages.  Raises: InputError if it is damaged, OSError as `open`.
    """
    try:
        table: Any = json.loads(read_regular(path))
    except (ValueError, RecursionError):
        table = None
    content = without_check(table) if isinstance(table, dict) else {}
    if not isinstance(table, dict) or with_check(content) != table:
        raise InputError(f"{path} is damaged: its checksum does not match its content: {remedy}")
    return content


def without_check(table: Any) -> dict[str, Any]:
    return {key: value for key, value in cast(dict[str, Any], table).items() if key != KEY}


def toml_with_check(text: str) -> str:
    """A TOML file's text with a checksum, as a comment in its last line."""
    return f"{text}# check: {_check(text)}\n"


def check_toml(text: str) -> bool | None:
    """Whether the checksum in the last line of a TOML file matches; None if there is none."""
    match = _TOML_END.search(text)
    return match and match[1] == _check(text[: match.start()])


def _check(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'surrogateescape')):08x}"


def _parse(line: bytes) -> dict[str, Any] | None:
    """The object of a line, without the checksum; None if the line is damaged."""
    try:
        table: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, dict):
        return None
    content = without_check(table)
    # as text, because the same values in another form are damage too
    return content if json_line(content) == line else None


def _table(line: bytes, path: Path, number: int) -> dict[str, Any]:
    table = _parse(line + b"\n")
    if table is None:
        raise InputError(
            f"line {number} of {path} is damaged: its checksum does not match: copy the file again "
            "from where it is intact, or remove the line: "
            f"sed -i {number}d {shlex.quote(str(path))}"
        )
    return table


def _is_cut(line: bytes) -> bool:
    """Whether a last line without its end is the start of a line, and not a damaged whole one."""
    try:
        json.JSONDecoder().raw_decode(line.decode("latin-1"))
    except (ValueError, RecursionError):
        return True
    return False


def _lock(file: BinaryIO) -> None:
    """Let other processes wait until the file is closed, where the system has such locks."""
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _repair_end(file: BinaryIO) -> None:
    """Complete a last line that lacks only its end, and remove one that a crash cut off."""
    size = start = file.seek(0, os.SEEK_END)
    tail = b""
    while start and b"\n" not in tail:
        start = max(start - (1 << 16), 0)
        file.seek(start)
        tail = file.read(size - start)
    last = tail.rpartition(b"\n")[2]
    if last and _is_cut(last):
        file.truncate(size - len(last))
    elif last:
        file.write(b"\n")
