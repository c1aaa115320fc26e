"""The few things a store does with files: list, read ranges, publish whole files, remove.

A file appears under its name only when it is complete: it is written under a temporary name, forced
to the disk, then renamed. So a name that exists is a file that is whole, whatever was killed when.
"""

import os
import secrets
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fewstep.errors import InputError

PIECE = 1 << 20
TEMPORARY = ".tmp"


class Folder:
    """A local folder. Files are named without a path; failures of the disk are `InputError`."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    def names(self) -> set[str]:
        """All that lies in the folder, temporary files included; nothing if there is no folder."""
        with _explained(self.root):
            return set(os.listdir(self.root)) if self.root.exists() else set()

    def size(self, name: str) -> int:
        with _explained(self.root / name):
            return (self.root / name).stat().st_size

    def read(self, name: str) -> bytes:
        with _explained(self.root / name):
            return (self.root / name).read_bytes()

    def pieces(self, name: str) -> Iterator[bytes]:
        """The whole file, a mebibyte at a time."""
        with _explained(self.root / name), (self.root / name).open("rb") as file:
            while piece := file.read(PIECE):
                yield piece

    def ranges(self, name: str, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
        """The bytes from start to stop of each span. Opened anew for each call: any number of
        threads, processes and shards read without sharing a handle or running out of them."""
        path = self.root / name
        with _explained(path), path.open("rb", buffering=0) as file:
            for start, stop in spans:
                file.seek(start)
                yield file.read(stop - start)

    def publish(self, name: str, chunks: Iterable[bytes]) -> None:
        """Write a file that is seen whole or not at all."""
        temporary = self.root / f"{name}.{secrets.token_hex(4)}{TEMPORARY}"
        with _explained(self.root / name):
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.writelines(chunks)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.root / name)
            finally:
                temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        with _explained(self.root / name):
            (self.root / name).unlink(missing_ok=True)

    def sweep(self, name: str = "") -> None:
        """Remove what killed writers left of a file, or of all files."""
        for left in self.names():
            if left.startswith(name) and left.endswith(TEMPORARY):
                self.remove(left)


@contextmanager
def _explained(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
