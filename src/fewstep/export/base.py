"""What all exports share: the folder, and the record of what was checked."""

import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fewstep.errors import InputError
from fewstep.export.source import Source

RECORD = "export.json"


@dataclass(frozen=True)
class Exporter(ABC):
    """Base class of export targets: a frozen dataclass whose fields are its options."""

    noun: ClassVar[str] = "exporter"
    extra: ClassVar[tuple[str, ...]] = ()
    """Modules that the target needs beyond fewstep's own; they come with `fewstep[export]`."""

    @abstractmethod
    def write(self, source: Source, folder: Path) -> dict[str, Any]:
        """Write the files into the empty `folder` and check them.

        Returns JSON values that say what was checked, for `export.json`. Raises InputError for a
        generator that the target cannot express, or if a check fails.
        """


def export(exporter: Exporter, source: Source, out: Path, *, target: str) -> dict[str, Any]:
    """Write `source` into the folder `out`, with a record in `export.json`. Returns the record.

    A folder of an earlier export is replaced once the new one has passed its checks. Raises
    InputError for a folder with other contents, or as `Exporter.write`.
    """
    with _replaced(out) as folder:
        checks = exporter.write(source, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        record = {"target": target, **source.about(), "checks": checks, "files": sizes}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")
    return record


@contextmanager
def _replaced(out: Path) -> Generator[Path]:
    """A new folder, which takes the place of `out` if the block succeeds."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).exists():
        raise InputError(
            f"--out {out} is not empty and is no earlier export: it has no {RECORD}; give another"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        problem = error.strerror or str(error)
        raise InputError(f"cannot write {out}: {problem}; give another --out") from error
    try:
        folder.chmod(0o755)
        yield folder
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
