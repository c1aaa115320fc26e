"""Fill a folder beside or in another one, so that no program reads half of its files."""

import glob
import os
import secrets
import shutil
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fewstep.files import TEMPORARY, try_lock


@contextmanager
def temporary_folder(target: Path) -> Generator[Path]:
    """A new folder on the disk of `target`, which is a real path, not a link: in it if it exists,
    else beside it. Unless the block renames it, it is removed at the end.

    Missing parent folders are created, and removed if the block raises. Folders that killed
    processes left for the same `target` are removed.
    """
    new_folders = [folder for folder in target.parents if not folder.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _remove_leftovers(target)
        place = target if target.is_dir() else target.parent  # target may be a disk of its own
        folder = place / f".{target.name}-{secrets.token_hex(4)}{TEMPORARY}"
        folder.mkdir()
        with _locked(folder):  # which tells others that it is no leftover
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        with suppress(OSError):  # another process may use them meanwhile
            for parent in new_folders:
                parent.rmdir()
        raise


def is_empty(target: Path) -> bool:
    """Whether a folder has no files, other than those of unfinished temporary folders."""
    return {*target.iterdir()} <= {*_temporary_folders(target, target)}


def _temporary_folders(target: Path, place: Path) -> Iterator[Path]:
    return place.glob(f".{glob.escape(target.name)}-????????{TEMPORARY}")


def _remove_leftovers(target: Path) -> None:
    """Remove the folders of killed processes."""
    for place in (target, target.parent):
        for folder in _temporary_folders(target, place):
            with _locked(folder) as is_leftover:
                if is_leftover:
                    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Generator[bool]:
    """Lock a folder itself. The value is whether that succeeded."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # on Windows, or it is another user's
        yield False
        return
    try:
        yield bool(try_lock(descriptor))
    finally:
        os.close(descriptor)
