"""File operations of a store, in local and remote folders: list, read ranges, publish, remove.

A file appears under its name only when it is complete, even if a process is killed. A local file
is written under a temporary name and renamed; an object store lists a file only after its upload.
Some file systems of fsspec move files by copying: a store's checksums detect incomplete copies.
"""

import errno
import os
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from fewstep.errors import InputError
from fewstep.files import LOCK, TEMPORARY, atomic_write
from fewstep.paths import open_regular, read_regular

PIECE = 1 << 20
MAX_READ = 1 << 28
"""Largest size in bytes of a manifest, which has about 150 bytes for each shard."""
# uploads are atomic here: no temporary name is needed, and a rename would be a copy
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "memory"}

Address = str | os.PathLike[str]


class Span(NamedTuple):
    """Bytes `start` to `stop` of a file."""

    name: str
    start: int
    stop: int


class Folder(ABC):
    """A folder of files without subfolders. Errors of the file system are raised as InputError."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Length in bytes of each file but the lock, also of temporary ones; {} if there is no
        folder."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Content of a file.  Raises: InputError for more than MAX_READ bytes."""

    @abstractmethod
    def pieces(self, name: str) -> Iterator[bytes]:
        """Content of a file, about a mebibyte at a time."""

    @abstractmethod
    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span. Threads may read at the same time: no file is kept open."""

    @abstractmethod
    def publish(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file atomically."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def sweep(self, prefix: str = "") -> None:
        """Remove temporary files of killed writers whose names start with `prefix`."""
        for name in self.sizes():
            if name.startswith(prefix) and name.endswith(TEMPORARY):
                self.remove(name)


def open_folder(address: Address) -> Folder:
    """The folder at a path, or at an address such as `s3://bucket/folder` that fsspec knows.

    Raises: InputError if the scheme is unknown, its package is missing, or the service fails.
    """
    text = os.fspath(address)
    if "://" not in text:
        return LocalFolder(text)
    scheme = text.partition("://")[0]
    try:
        files, root = fsspec.core.url_to_fs(text)
    except ImportError as error:
        extra = "pip install 'fewstep[s3]'" if scheme == "s3" else str(error)
        raise InputError(f"{text}: a package for {scheme}:// is missing: {extra}") from None
    except Exception as error:  # some services are contacted here already
        raise InputError(f"{text}: {_first_line(error)}") from None
    if "//" in text.partition("://")[2].rstrip("/"):
        raise InputError(f"{text} has an empty folder name: write / instead of //")
    return LocalFolder(root) if scheme in ("file", "local") else RemoteFolder(text, files, root)


class LocalFolder(Folder):
    """A folder on a local disk."""

    def __init__(self, root: Address) -> None:
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    def sizes(self) -> dict[str, int]:
        with _input_errors(self.root):
            if not self.root.exists():
                return {}
            entries = os.scandir(self.root)
            return {entry.name: _size(entry) for entry in entries if entry.name != LOCK}

    def read(self, name: str) -> bytes:
        with _input_errors(self.root / name):
            return read_regular(self.root / name, limit=MAX_READ)

    def pieces(self, name: str) -> Iterator[bytes]:
        with _input_errors(self.root / name), open_regular(self.root / name) as file:
            while piece := file.read(PIECE):
                yield piece

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        # grouped by file, so that only one is open at a time
        order = sorted(range(len(spans)), key=lambda i: spans[i].name)
        contents = [b""] * len(spans)
        for name, indices in groupby(order, key=lambda i: spans[i].name):
            path = self.root / name
            with _input_errors(path), open_regular(path) as file:
                for i in indices:
                    _, start, stop = spans[i]
                    contents[i] = os.pread(file.fileno(), stop - start, start)
        return contents

    def publish(self, name: str, chunks: Iterable[bytes]) -> None:
        path = self.root / name
        with _input_errors(path), atomic_write(path) as file:
            file.writelines(chunks)

    def remove(self, name: str) -> None:
        with _input_errors(self.root / name):
            (self.root / name).unlink(missing_ok=True)


class RemoteFolder(Folder):
    """A folder behind fsspec: S3, Google Cloud Storage, SFTP and others.

    Threads may share it. Forked processes may not, because fsspec does not support it: spawn them.
    """

    def __init__(self, address: str, files: Any, root: str) -> None:
        self._address = address.rstrip("/")
        self._files = files
        self._root = root.rstrip("/")
        self._atomic_upload = self._address.partition("://")[0] in OBJECT_STORES

    def __str__(self) -> str:
        return self._address

    def sizes(self) -> dict[str, int]:
        def list_entries() -> list[dict[str, Any]]:
            self._files.invalidate_cache()  # other processes write here too
            try:
                return self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return []

        entries = {entry["name"].rstrip("/"): entry for entry in self._call("", list_entries)}
        entries.pop(self._root, None)  # some stores have an empty object for the folder itself
        by_name = {path.rsplit("/", 1)[-1]: entry for path, entry in entries.items()}
        return {name: self._size(name, entry) for name, entry in by_name.items()}

    def _size(self, name: str, entry: dict[str, Any]) -> int:
        if entry.get("size") is not None or entry.get("type") == "directory":
            return entry.get("size") or 0
        # web servers list no lengths
        return self._call(name, lambda: self._files.size(self._path(name))) or 0

    def read(self, name: str) -> bytes:
        size = self._call(name, lambda: self._files.size(self._path(name))) or 0
        if size > MAX_READ:
            raise InputError(f"{self}/{name} has {size:,} bytes, over {MAX_READ:,}: give another")
        return self._call(name, lambda: self._files.cat_file(self._path(name)))

    def pieces(self, name: str) -> Iterator[bytes]:
        size = self._call(name, lambda: self._files.size(self._path(name)))
        for start in range(0, size, 8 * PIECE):
            (piece,) = self.ranges([Span(name, start, min(start + 8 * PIECE, size))])
            yield piece

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        def fetch() -> list[bytes]:
            # cat_ranges sends the requests concurrently, because each waits for a round trip
            contents = self._files.cat_ranges(
                [self._path(span.name) for span in spans],
                [span.start for span in spans],
                [span.stop for span in spans],
            )
            for content in contents:
                if isinstance(content, BaseException):
                    raise content
            return contents

        nonempty = [span for span in spans if span.stop > span.start]
        if len(nonempty) < len(spans):  # servers refuse empty ranges
            contents = iter(self.ranges(nonempty))
            return [next(contents) if span.stop > span.start else b"" for span in spans]
        return self._call(spans[0].name, fetch) if spans else []

    def publish(self, name: str, chunks: Iterable[bytes]) -> None:
        content = b"".join(chunks)
        if self._atomic_upload:
            self._call(name, lambda: self._files.pipe_file(self._path(name), content))
            return
        temporary = f"{name}.{secrets.token_hex(4)}{TEMPORARY}"

        def write_and_move() -> None:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(self._path(temporary), content)
            self._files.mv(self._path(temporary), self._path(name))

        self._call(name, write_and_move)

    def remove(self, name: str) -> None:
        def remove() -> None:
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

        self._call(name, remove)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _call(self, name: str, do: Callable[[], Any]) -> Any:
        """Call `do`, and raise any of its exceptions as an InputError of one line.

        Services raise exceptions of many types. `name` is the file, for the message.
        """
        try:
            return do()
        except Exception as error:
            path = f"{self._address}/{name}" if name else self._address
            raise InputError(f"{path}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except OSError:  # removed meanwhile, or a link to nothing
        return 0


@contextmanager
def _input_errors(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += "; complete files are kept: free some space and run the same command again"
        raise InputError(f"{path}: {reason}") from None
