"""The images of a split, with labels by their folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.data.folder.files import FolderFile
from fewstep.data.folder.labels import number_folders
from fewstep.data.folder.layout import Place, check_classes
from fewstep.errors import InputError
from fewstep.formatting import printable


@dataclass(frozen=True)
class Selection:
    """The images of a split, sorted by name."""

    files: Sequence[FolderFile]
    labels: Sequence[int] | None = None
    class_names: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """Text columns, one value per image."""
    captions: Sequence[tuple[str, ...]] | None = None
    """The captions of each image; None if nothing has captions."""
    other_splits: Mapping[str, Sequence[FolderFile]] = field(
        default_factory=dict[str, Sequence[FolderFile]]
    )
    """Images that are listed for other splits."""
    notes: tuple[str, ...] = ()
    """Decisions that the user should know of."""


def select_by_folder(place: Place, path: Path) -> Selection:
    """The images in `path`; its sub-folders are their classes.

    Raises: InputError if one file is in two classes, and for sub-folders that may be no classes.
    """
    if not place.folders:
        return select_unlabelled(place)
    check_classes(place, path)
    depth = len(place.parts)
    first: dict[tuple[int, int], FolderFile] = {}
    for file in place.files:
        if file.kind != "image":
            continue
        other = first.setdefault(file.identity, file)
        if other.parts[depth] != file.parts[depth]:
            raise InputError(
                f"{printable(other.name)} and {printable(file.name)} are one file in two classes: "
                "remove one of them"
            )
    files = [*first.values()]
    return Selection(files, *number_folders([file.parts[depth] for file in files]))


def select_unlabelled(place: Place) -> Selection:
    """All images of a place, without labels."""
    first: dict[tuple[int, int], FolderFile] = {}
    for file in place.files:
        if file.kind == "image":
            first.setdefault(file.identity, file)
    return Selection([*first.values()])
