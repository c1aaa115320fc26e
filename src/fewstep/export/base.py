"""What all exports share: the folder, and the record of what was checked."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fewstep.checksums import read_checked_json, with_check
from fewstep.errors import InputError
from fewstep.export.source import Source
from fewstep.files import EXPORT_RECORD, atomic_write, file_digest
from fewstep.temporary_folder import is_empty, temporary_folder

RECORD = EXPORT_RECORD


@dataclass(frozen=True)
class Exporter(ABC):
    """Base class of export targets: a frozen dataclass whose fields are its options."""

    noun: ClassVar[str] = "exporter"
    extra: ClassVar[tuple[str, ...]] = ()
    """Modules that the target needs beyond fewstep's own; they come with `fewstep[export]`."""
    decodes: ClassVar[bool] = False
    """Whether the target can contain the decoder of latents."""

    @abstractmethod
    def write(self, source: Source, folder: Path) -> dict[str, Any]:
        """Write the files into the empty `folder` and check them.

        Returns JSON values that say what was checked, for `export.json`. Raises InputError for a
        generator that the target cannot express, or if a check fails.
        """


def export(exporter: Exporter, source: Source, out: Path, *, target: str) -> dict[str, Any]:
    """Write `source` into the folder `out`, with a record in `export.json`. Returns the record.

    Files of an earlier export are replaced once the new ones have passed their checks; other files
    beside them remain. Raises InputError for a folder with other contents, or as `Exporter.write`.
    """
    _check_decoder(exporter, source, target)
    with _replaced(out) as folder:
        checks = exporter.write(source, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        sizes = {name: path.stat().st_size for name, path in zip(names, files, strict=True)}
        digests = {name: file_digest(path) for name, path in zip(names, files, strict=True)}
        record = {"target": target, **source.about(), "checks": checks, "files": sizes}
        record["sha256"] = digests
        text = json.dumps(with_check(record), indent=2) + "\n"
        (folder / RECORD).write_text(text, encoding="utf-8")
    return record


def _check_decoder(exporter: Exporter, source: Source, target: str) -> None:
    """Raise InputError for a generator of latents whose decoder the target cannot contain."""
    decoder = source.generator.decoder
    if decoder is None:
        return
    if not exporter.decodes:
        raise InputError(
            f"{source.name} generates latents, whose decoder --to {target} cannot contain: use "
            "--to onnx or torch"
        )
    if decoder.config.is_pinned:
        raise InputError(
            f"{source.name} generates latents of {decoder.config}, whose decoder is not exported: "
            "export a generator of pixels, or of latents of the method autoencode"
        )


@contextmanager
def _replaced(out: Path) -> Generator[Path]:
    """A new folder, whose files take the place of those of an earlier export if the block succeeds.

    Raises: InputError for an `out` that is neither new, empty nor an earlier export, or that cannot
    be written.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    # not a symbolic link, which cannot be made as a folder; a name also for .
    target = Path(os.path.realpath(out))
    earlier = _earlier_files(out, target)
    try:
        with temporary_folder(target) as folder:
            yield folder
            if target.exists():
                _move_files(folder, target, earlier)
            else:
                folder.rename(target)
    except OSError as error:
        problem = error.strerror or str(error)
        raise InputError(f"cannot write {out}: {problem}; give another --out") from error


def _earlier_files(out: Path, target: Path) -> set[Path]:
    """Files of an earlier export in `out`, whose real path is `target`, relative to it. Users' own
    files are not among them.

    Raises: InputError for a folder with contents that is no earlier export.
    """
    if not target.is_dir() or is_empty(target):
        return set()
    try:
        names = read_checked_json(out / RECORD, "give another --out")["files"]
        files = {Path(name) for name in names}
    except (OSError, TypeError, KeyError) as error:
        raise InputError(
            f"--out {out} is not empty and is no earlier export: it has no {RECORD} with a list of "
            "its files; give another"
        ) from error
    paths = {file: (target / file).resolve() for file in files}
    own = {file for file, path in paths.items() if path.is_file() and path.is_relative_to(target)}
    return {*own, Path(RECORD)}


def _move_files(folder: Path, target: Path, earlier: set[Path]) -> None:
    """Move the files of `folder` into `target`, in place of those of an earlier export."""
    new = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    for file in new:
        if file not in earlier and (target / file).exists():
            raise InputError(
                f"{target / file} is not of an earlier export, and would be overwritten: move it, "
                "or give another --out"
            )
    # a kill from here on leaves a folder that the next export accepts
    record = with_check({"files": [file.as_posix() for file in {*earlier, *new}]})
    with atomic_write(target / RECORD) as content:
        content.write(json.dumps(record).encode())
    for file in new:
        if file != Path(RECORD):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).replace(target / file)
    obsolete = earlier - {*new}
    for file in obsolete:
        (target / file).unlink(missing_ok=True)
    below = {parent for file in obsolete for parent in file.parents} - {Path()}
    for parent in sorted(below, reverse=True):  # the inner ones first
        with suppress(OSError):  # it has other files
            (target / parent).rmdir()
    (folder / RECORD).replace(target / RECORD)  # last: it says that the export is whole
