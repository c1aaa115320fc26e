"""What the studio offers: the runs, stores and reports inside the folders of its command line.

The page knows them by names of this catalogue alone: it opens nothing outside these folders.
"""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fewstep.errors import InputError, did_you_mean
from fewstep.models import model_addresses
from fewstep.paths import identify
from fewstep.run_folder import Run

Kind = Literal["run", "store", "report"]
DEPTH = 2
"""How many levels of folders below those of the command line are searched."""
MAX_FOLDERS = 5000
SECONDS_FRESH = 3.0
"""How long a search is used before the folders are searched again."""


@dataclass(frozen=True)
class Entry:
    """Something that the page may open, by its name."""

    kind: Kind
    name: str
    address: str
    """A path, or `source:rest` for a checkpoint of another project."""

    @property
    def run(self) -> Run | None:
        """The run folder, None for single files and foreign checkpoints."""
        return Run(self.address) if self.kind == "run" and Path(self.address).is_dir() else None

    @property
    def has_weights(self) -> bool:
        """Whether a generator can be loaded: a training that just began has none yet."""
        return self.run is None or self.run.model_file.exists()


@dataclass
class Catalogue:
    """The entries of `addresses`: run folders, folders of runs, weights files, `source:rest`.

    Raises: InputError for an address that does not exist, or if there is nothing to open.
    """

    addresses: Sequence[str]
    _entries: dict[tuple[Kind, str], Entry] = field(default_factory=dict[tuple[Kind, str], Entry])
    _time: float = -SECONDS_FRESH
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for address in self.addresses:
            if not _is_source(address) and not Path(address).exists():
                raise InputError(f"{address} does not exist: give a run, or a folder of runs")
        if not self.entries("run") and not self.entries("store"):
            where = ", ".join(self.addresses) or "runs/"
            raise InputError(
                f"there are no runs in {where}: train one, such as with `fewstep demo`, or give "
                "run folders: fewstep studio RUN ..."
            )

    def entries(self, kind: Kind) -> list[Entry]:
        """The entries of a kind, in the order of the command line, then by name."""
        with self._lock:
            if time.monotonic() - self._time >= SECONDS_FRESH:
                entries: dict[tuple[Kind, str], Entry] = {}
                for entry in _search(self.addresses):
                    _add(entries, replace(entry, name=printable(entry.name)))
                self._entries, self._time = entries, time.monotonic()
            return [entry for entry in self._entries.values() if entry.kind == kind]

    def find(self, kind: Kind, name: str) -> Entry:
        """The entry with this name.  Raises: InputError if there is none in the folders."""
        entries = {entry.name: entry for entry in self.entries(kind)}
        if name not in entries:
            raise InputError(
                f"{name[:200]!r} is no {kind} inside the folders of this studio"
                f"{did_you_mean(name, entries)}"
            )
        return entries[name]


def printable(text: str) -> str:
    """The text with a question mark for what is not Unicode, such as of some file names."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _add(entries: dict[tuple[Kind, str], Entry], entry: Entry) -> None:
    """Add an entry; if another one has its name, under a name with more of its path."""
    other = entries.setdefault((entry.kind, entry.name), entry)
    path, depth = os.path.realpath(entry.address), entry.name.count("/") + 2
    longer = printable("/".join(Path(path).parts[-depth:]))
    if os.path.realpath(other.address) != path and longer != entry.name:
        _add(entries, replace(entry, name=longer))


def default_addresses() -> list[str]:
    """What `fewstep studio` opens without arguments: `runs/`, and the models of packages."""
    return [*(["runs"] if Path("runs").is_dir() else []), *model_addresses()]


def _is_source(address: str) -> bool:
    """Whether an address is `source:rest`, such as that of a checkpoint of another project."""
    return ":" in address and not Path(address).exists()


def _search(addresses: Sequence[str]) -> Iterator[Entry]:
    several = len([a for a in addresses if not _is_source(a)]) > 1
    for address in addresses:
        if _is_source(address):
            yield Entry("run", address, address)
        elif Path(address).is_file():
            yield Entry("run", Path(address).name, address)
        else:
            yield from _search_folder(Path(address), prefix_all=several)


def _search_folder(root: Path, *, prefix_all: bool) -> Iterator[Entry]:
    """The entries in a folder, named by their paths below it; it may be a run itself."""
    for path in _folders(root):
        below = path.relative_to(root).as_posix()
        name = path.resolve().name if below == "." else below
        if prefix_all and below != ".":
            name = f"{root.resolve().name}/{below}"
        kind = identify(path)
        if kind == "run" or kind == "store":
            yield Entry(kind, name, str(path))
        for report in sorted(path.glob("*.html")):
            if report.is_file() and report.resolve().is_relative_to(root.resolve()):
                title = report.name if below == "." else f"{name}/{report.name}"
                yield Entry("report", title, str(report))


def _folders(root: Path) -> Iterator[Path]:
    """The folder and those below it, without hidden ones and links that lead outside."""
    base, count = root.resolve(), 0
    for folder, names, _ in os.walk(root):
        path = Path(folder)
        inside = path.resolve().is_relative_to(base)
        depth = len(path.relative_to(root).parts)
        names[:] = sorted(n for n in names if not n.startswith("."))
        if not inside or depth >= DEPTH or identify(path) in ("run", "store"):
            names.clear()
        count += 1
        if inside and count <= MAX_FOLDERS:
            yield path
