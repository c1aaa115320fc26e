"""Locks of folders: one process uses a folder at a time, until it ends or is killed.

The lock is one of the operating system (`flock`, on Windows `msvcrt.locking`) on the file `.lock`
in the folder. The file also names its process, for error messages.
"""

import json
import os
import socket
import stat
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from fewstep.errors import InputError
from fewstep.files import LOCK, is_open_file, try_lock
from fewstep.paths import open_regular

ATTEMPTS = 5
PAUSE = 0.05
"""Seconds between two attempts: `lock_owner` holds a lock for a moment."""


@contextmanager
def lock_folder(folder: Path) -> Generator[None]:
    """Use a folder alone during the block. Missing folders are created, and removed again if they
    are empty at the end.

    On a file system without locks, a warning says so and the block runs without one. Raises:
    InputError, with the process, if another one uses the folder.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    descriptor = _acquire(path)
    if descriptor is None and lock_owner(folder) is None:
        descriptor = _acquire(path)  # the other process has just ended
    if descriptor is None:
        owner = lock_owner(folder) or "another process"
        raise InputError(
            f"{folder} is in use by {owner}: wait until it ends, or give another folder"
        )
    try:
        owner = {"process": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(descriptor)
        with suppress(OSError):
            for new in new_folders:
                new.rmdir()


def lock_owner(folder: Path) -> str | None:
    """The process that uses a folder, such as "process 71 on host"; None if there is none."""
    path = folder / LOCK
    try:
        with open_regular(path) as file:
            if try_lock(file.fileno()) is not False or not is_open_file(path, file.fileno()):
                return None
            text = file.read()
    except (OSError, InputError):
        return None
    try:
        owner = json.loads(text)
        return f"process {owner['process']} on {owner['host']}"
    except (ValueError, TypeError, KeyError, RecursionError):  # it is only just being written
        return "another process"


def remove_leftover_lock(folder: Path) -> None:
    """Remove the file of a process that was killed; that of a running one stays."""
    path = folder / LOCK
    with suppress(OSError, InputError), open_regular(path) as file:
        if try_lock(file.fileno()) and is_open_file(path, file.fileno()):
            path.unlink()


def _check_file(path: Path) -> None:
    """Raise InputError for a link, whose target would be overwritten, or anything but a file."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is no lock of fewstep, which is a file: remove it")


def _is_no_folder(path: Path) -> bool:
    """Whether there is something else, such as a file or a link; not if there is nothing."""
    try:
        return not stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _acquire(path: Path) -> int | None:
    """The locked file; None if another process holds its lock."""
    for _ in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _check_file(path)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # the last user of the folder has just removed it
            continue
        except FileExistsError:  # likewise, between the two looks that `mkdir` takes
            if _is_no_folder(path.parent):
                raise
            continue
        locked = try_lock(descriptor)
        if locked is None:
            warnings.warn(
                f"the file system of {path.parent} has no locks: take care that no other process "
                "uses this folder",
                stacklevel=2,
            )
        if locked is not False and is_open_file(path, descriptor):
            return descriptor
        os.close(descriptor)
        time.sleep(PAUSE)
    return None
