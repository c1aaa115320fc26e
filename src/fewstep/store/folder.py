"""The few things a store does with files: list, read ranges, publish whole files, remove.

A file appears under its name only when it is complete: it is written under a temporary name, forced
to the disk, then renamed; an object store shows a file only when the whole upload has ended. So a
name that exists is a file that is whole, whatever was killed when. (Of other services this is as
true as their move is: where fsspec copies and removes, a killed copy is found by its checksums.)
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
from fewstep.files import TEMPORARY, atomic_write

PIECE = 1 << 20
# an upload becomes visible at once and whole: no temporary name is needed, and a rename is a copy
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "adl", "memory"}

Address = str | os.PathLike[str]


class Span(NamedTuple):
    """The bytes from `start` to `stop` of a file."""

    name: str
    start: int
    stop: int


class Folder(ABC):
    """A folder of files without subfolders; what its place refuses is an `InputError`."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """All that lies in the folder and its bytes, temporary files included; nothing if there is
        no folder."""

    @abstractmethod
    def read(self, name: str) -> bytes: ...

    @abstractmethod
    def pieces(self, name: str) -> Iterator[bytes]:
        """The whole file, a mebibyte or so at a time."""

    @abstractmethod
    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span. Nothing stays open: any number of threads and shards read
        without sharing a handle or running out of them."""

    @abstractmethod
    def publish(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file that is seen whole or not at all."""

    @abstractmethod
    def remove(self, name: str) -> None: ...

    def sweep(self, name: str = "") -> None:
        """Remove what killed writers left of a file, or of all files."""
        for left in self.sizes():
            if left.startswith(name) and left.endswith(TEMPORARY):
                self.remove(left)


def open_folder(address: Address) -> Folder:
    """The folder at a path, or at an address such as `s3://bucket/folder` that fsspec knows.

    Raises: InputError for a scheme that is not known, or whose package is not installed.
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
    except Exception as error:  # some services are reached here already, and may not be there
        raise InputError(f"{text}: {_line(error)}") from None
    if "//" in text.partition("://")[2].rstrip("/"):
        raise InputError(f"{text}: an empty folder name, between // and //, has no place in it")
    return LocalFolder(root) if scheme in ("file", "local") else RemoteFolder(text, files, root)


class LocalFolder(Folder):
    """A folder of this machine's disks."""

    def __init__(self, root: Address) -> None:
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    def sizes(self) -> dict[str, int]:
        with _explained(self.root):
            if not self.root.exists():
                return {}
            return {entry.name: _size(entry) for entry in os.scandir(self.root)}

    def read(self, name: str) -> bytes:
        with _explained(self.root / name):
            return (self.root / name).read_bytes()

    def pieces(self, name: str) -> Iterator[bytes]:
        with _explained(self.root / name), (self.root / name).open("rb") as file:
            while piece := file.read(PIECE):
                yield piece

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        # grouped, so that one file at a time is open
        order = sorted(range(len(spans)), key=lambda place: spans[place].name)
        found = [b""] * len(spans)
        for name, places in groupby(order, key=lambda place: spans[place].name):
            path = self.root / name
            with _explained(path), path.open("rb", buffering=0) as file:
                for place in places:
                    _, start, stop = spans[place]
                    found[place] = os.pread(file.fileno(), stop - start, start)
        return found

    def publish(self, name: str, chunks: Iterable[bytes]) -> None:
        path = self.root / name
        with _explained(path), atomic_write(path) as file:
            file.writelines(chunks)

    def remove(self, name: str) -> None:
        with _explained(self.root / name):
            (self.root / name).unlink(missing_ok=True)


class RemoteFolder(Folder):
    """A folder that fsspec reaches: S3, Google Cloud Storage, SFTP and others.

    Threads may share it; a forked process may not (fsspec's own rule): spawn instead.
    """

    def __init__(self, address: str, files: Any, root: str) -> None:
        self._address = address.rstrip("/")
        self._files = files
        self._root = root.rstrip("/")
        self._whole_at_once = self._address.partition("://")[0] in OBJECT_STORES

    def __str__(self) -> str:
        return self._address

    def sizes(self) -> dict[str, int]:
        def listed() -> list[dict[str, Any]]:
            self._files.invalidate_cache()  # other processes write here too
            try:
                return self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return []

        entries = {entry["name"].rstrip("/"): entry for entry in self._reach("", listed)}
        entries.pop(self._root, None)  # some stores keep an empty object for the folder itself
        named = ((path.rsplit("/", 1)[-1], entry) for path, entry in entries.items())
        return {name: self._size(name, entry) for name, entry in named}

    def _size(self, name: str, entry: dict[str, Any]) -> int:
        if entry.get("size") is not None or entry.get("type") == "directory":
            return entry.get("size") or 0
        # a listing without lengths, as web servers give
        return self._reach(name, lambda: self._files.size(self._path(name))) or 0

    def read(self, name: str) -> bytes:
        return self._reach(name, lambda: self._files.cat_file(self._path(name)))

    def pieces(self, name: str) -> Iterator[bytes]:
        size = self._reach(name, lambda: self._files.size(self._path(name)))
        for start in range(0, size, 8 * PIECE):
            (piece,) = self.ranges([Span(name, start, min(start + 8 * PIECE, size))])
            yield piece

    def ranges(self, spans: Sequence[Span]) -> list[bytes]:
        def fetched() -> list[bytes]:
            # all at once: asked one after the other, each would wait a round trip
            found = self._files.cat_ranges(
                [self._path(span.name) for span in spans],
                [span.start for span in spans],
                [span.stop for span in spans],
            )
            for piece in found:
                if isinstance(piece, BaseException):
                    raise piece
            return found

        wanted = [place for place, span in enumerate(spans) if span.stop > span.start]
        if len(wanted) < len(spans):  # nothing is a range that servers refuse
            found = iter(self.ranges([spans[place] for place in wanted]))
            return [next(found) if span.stop > span.start else b"" for span in spans]
        return self._reach(spans[0].name, fetched) if spans else []

    def publish(self, name: str, chunks: Iterable[bytes]) -> None:
        content = b"".join(chunks)
        if self._whole_at_once:
            self._reach(name, lambda: self._files.pipe_file(self._path(name), content))
            return
        temporary = f"{name}.{secrets.token_hex(4)}{TEMPORARY}"

        def moved() -> None:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(self._path(temporary), content)
            self._files.mv(self._path(temporary), self._path(name))

        self._reach(name, moved)

    def remove(self, name: str) -> None:
        def removed() -> None:
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return

        self._reach(name, removed)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _reach(self, name: str, do: Callable[[], Any]) -> Any:
        """What `do` gives; any failure as one line, since each service has exceptions of its own:
        no route, no credentials, no bucket."""
        try:
            return do()
        except Exception as error:
            where = f"{self._address}/{name}" if name else self._address
            raise InputError(f"{where}: {_line(error)}") from None


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _size(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_size
    except FileNotFoundError:  # gone meanwhile, or a link to nothing
        return 0


@contextmanager
def _explained(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        told = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told += "; what is whole is kept: make room and run the same command again"
        raise InputError(f"{path}: {told}") from None
