"""Account for every file in a folder of images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.data.account import FileAccount
from fewstep.data.folder.files import LABEL_FILES, FolderFile
from fewstep.data.folder.layout import Place
from fewstep.data.folder.selection import Selection
from fewstep.errors import InputError
from fewstep.formatting import printable

REPEATED = "twice in the folder (the same file by another name)"
LABELS_NOTE = (
    "The images have no labels, which are read only from folders, metadata.csv, metadata.jsonl and "
    "dataset.json"
)
LABEL_SUFFIXES = frozenset(
    f"with the suffix {suffix}"
    for suffix in (".csv", ".json", ".jsonl", ".parquet", ".tsv", ".txt", ".xlsx", ".xml")
)
"""Reasons of files that may hold labels in a form that is not read."""


@dataclass
class _Groups:
    """Every file in the group that it is added to first."""

    remaining: dict[tuple[str, ...], FolderFile]
    left_out: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    extras: dict[str, int] = field(default_factory=dict[str, int])

    def take(self, files: Iterable[FolderFile]) -> int:
        """Remove files from those that remain. Returns their number."""
        return sum(self.remaining.pop(file.parts, None) is not None for file in files)

    def add(self, file: FolderFile, image_reason: str) -> None:
        """Add a file that is not in the set."""
        if file.kind in ("extra", "label file"):
            kind = file.reason or file.kind
            self.extras[kind] = self.extras.get(kind, 0) + 1
        else:
            reason = image_reason if file.kind == "image" else file.reason
            self.left_out.setdefault(reason, []).append(file.name)


def account_for(
    folder: Path,
    all_files: Sequence[FolderFile],
    place: Place,
    selection: Selection,
    caption_files: Sequence[FolderFile],
) -> FileAccount:
    """The account of `all_files`, of which the selection was made.

    Raises: InputError for label files that were not read.
    """
    groups = _Groups({file.parts: file for file in all_files})
    images = groups.take(selection.files)
    other_splits: dict[str, int] = {}
    for splits in (selection.other_splits, place.other_splits):
        for name, files in splits.items():
            other_splits[name] = other_splits.get(name, 0) + groups.take(files)
    if caption_files:
        groups.extras["of captions"] = groups.take(caption_files)
    label_file = place.label_file
    not_listed = f"not listed in {label_file.parts[-1]}" if label_file else REPEATED
    identities = {file.identity for file in selection.files}
    for file in groups.remaining.values():
        if file.parts[-1].lower() in LABEL_FILES and file != label_file:
            where = printable(str(folder.joinpath(*place.parts)))
            problem = file.reason or "in a place where it is not read"
            raise InputError(
                f"the label file {printable(str(folder.joinpath(*file.parts)))} is {problem}: "
                f"write one label file into {where}, or move it away"
            )
        groups.add(file, REPEATED if file.identity in identities else not_listed)
    has_unread = (
        selection.labels is None and not label_file and groups.left_out.keys() & LABEL_SUFFIXES
    )
    return FileAccount(
        images,
        {reason: tuple(names) for reason, names in groups.left_out.items()},
        groups.extras,
        other_splits,
        (*selection.notes, *((LABELS_NOTE,) if has_unread else ())),
    )
