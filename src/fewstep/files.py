"""Write files atomically, lock them, and hash tensors."""

import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

EXPORT_RECORD = "export.json"
"""File in a folder that `fewstep export` wrote, with the SHA-256 of each of its files."""
TEMPORARY = ".tmp"
"""Suffix of files that are still being written."""
LOCK = ".lock"
"""File in a folder that one process uses; see `locks.lock_folder`."""


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO, None, None]:
    """Open a temporary file beside `path`; rename it to `path` when the block succeeds.

    The content is flushed to disk before the rename, so that readers see either the old file or the
    complete new one. Missing parent folders are created. If the block raises, the temporary file
    and the new folders are removed.

    Several processes may write one file: the last rename wins. What a killed process left is
    overwritten by the next call for the same `path`. A symbolic link remains, and its target is
    replaced; a device or pipe, such as /dev/stdout, is written to directly.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    with _temporary_file(path) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        _release_on_windows(file)
        os.replace(file.name, path)  # before the file is closed, which ends its lock


@contextmanager
def atomic_replace(path: Path) -> Generator[Path, None, None]:
    """Like `atomic_write`, for a block that creates the file itself, at the path that it gets.

    The file has the permissions of a new file.
    """
    with _temporary_file(path) as file:
        part = Path(f"{file.name.removesuffix(TEMPORARY)}.part{TEMPORARY}")
        try:
            yield part
            os.chmod(part, stat.S_IMODE(os.fstat(file.fileno()).st_mode))
            with part.open("r+b") as content:
                os.fsync(content.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        _release_on_windows(file)
        os.unlink(file.name)


@contextmanager
def _temporary_file(path: Path) -> Generator[BinaryIO, None, None]:
    """A file beside `path` that only this process writes. If the block raises, it is removed."""
    new_folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = _open_alone(path.with_name(f"{path.name}{TEMPORARY}"))
        if file is None:  # another process is writing to it
            unique = f".{secrets.token_hex(4)}{TEMPORARY}"
            file = path.with_name(f"{path.name}{unique}").open("wb")
        with file:
            try:
                yield file
            except BaseException:
                _release_on_windows(file)
                Path(file.name).unlink(missing_ok=True)
                raise
    except BaseException:
        with suppress(OSError):  # another process may use the folder meanwhile
            for folder in new_folders:
                folder.rmdir()
        raise


def _open_alone(path: Path) -> BinaryIO | None:
    """Open a file, empty and locked, for writing; None if it is not certain that no other process
    writes to it."""
    file = open(path, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_TRUNC, 0o666))
    if try_lock(file.fileno()) and is_open_file(path, file.fileno()):
        file.truncate()
        return file
    file.close()
    return None


def _release_on_windows(file: BinaryIO) -> None:
    if sys.platform == "win32":  # where open files are neither renamed nor removed
        file.close()


def is_open_file(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the file that is open: it may have been renamed or removed."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE = 1 << 30  # beyond the content, which others could not read otherwise

    def try_lock(descriptor: int) -> bool | None:
        """Lock an open file for its process, until it is closed or the process ends.

        False if it is locked already; None if this file system has no locks.
        """
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        except OSError:
            return None
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool | None:
        """Lock an open file for its process, until it is closed or the process ends.

        False if it is locked already; None if this file system has no locks.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensor_digest(tensors: Mapping[str, Tensor], *, header: str = "") -> str:
    """SHA-256 (hex) of `header`, then of each tensor's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256(header.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()
