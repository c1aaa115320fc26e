"""Write files atomically, and hash tensors."""

import hashlib
import os
import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

TEMPORARY = ".tmp"
"""Suffix of files that are still being written."""


@contextmanager
def atomic_write(path: Path, *, single_writer: bool = False) -> Generator[BinaryIO, None, None]:
    """Open a temporary file beside `path`; rename it to `path` when the block succeeds.

    The content is flushed to disk before the rename, so that readers see either the old file or the
    complete new one. Missing parent folders are created. If the block raises, the temporary file
    and the new folders are removed.

    The temporary name is different in each call, so that several processes may write one file. With
    `single_writer` it is always the same, so that the next call overwrites what a killed process
    left.
    """
    new_folders = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = "" if single_writer else f".{secrets.token_hex(4)}"
    temporary = path.with_name(f"{path.name}{unique}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        with suppress(OSError):  # another process may use the folder meanwhile
            for folder in new_folders:
                folder.rmdir()
        raise


def tensor_digest(tensors: Mapping[str, Tensor], *, header: str = "") -> str:
    """SHA-256 (hex) of `header`, then of each tensor's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256(header.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().data)
    return digest.hexdigest()
