"""Find the folder that holds the images of a split, and what its sub-folders mean."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.data.account import name_list
from fewstep.data.folder.files import FolderFile
from fewstep.errors import InputError
from fewstep.formatting import printable

SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "valid": ("valid", "val", "validation", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
"""Names of folders, in lower case, by the split that they hold."""
ADVICE = (
    "rename the folders, or list the images in a metadata.csv with the columns file_name, label "
    "and split"
)
SHARD = re.compile(r"[0-9]{5,}")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
NOUN = re.compile(r"(?<=.)(set|data|images?|imgs?)$")
LAST_NUMBER = re.compile(r"([0-9]+)[^0-9]*$")


@dataclass(frozen=True)
class Place:
    """The folder that holds the images of a split."""

    parts: tuple[str, ...]
    """Names of the folders that lead to it."""
    files: Sequence[FolderFile]
    """All files below it."""
    label_file: FolderFile | None
    """The label file in it."""
    folders: Sequence[str]
    """Names of its sub-folders with images."""
    other_splits: Mapping[str, Sequence[FolderFile]]
    """Files in the folders of other splits."""
    has_splits: bool
    """Whether it is in the folder of a split."""


def split_of(name: str) -> str | None:
    """The split that a folder of this name holds; None for other names."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def find_place(folder: Path, files: Sequence[FolderFile], split: str) -> Place:
    """Descend from `folder` to the images of `split`: through folders that alone hold all images,
    and into the folder of the split, if there are splits.

    Raises: InputError for a split that is missing, and for a layout that could mean two things.
    """
    parts: tuple[str, ...] = ()
    others: dict[str, Sequence[FolderFile]] = {}
    has_splits = False
    while True:
        depth, path = len(parts), folder.joinpath(*parts)
        label_file = _label_file(path, [f for f in files if len(f.parts) == depth + 1])
        images = [file for file in files if file.kind == "image"]
        folders = list(dict.fromkeys(f.parts[depth] for f in images if len(f.parts) > depth + 1))
        place = Place(parts, files, label_file, folders, others, has_splits)
        direct = next((file for file in images if len(file.parts) == depth + 1), None)
        if direct and folders and not label_file:
            raise InputError(
                f"{printable(str(path))} holds both images ({printable(direct.parts[-1])}, ...) "
                f"and folders of images ({name_list(folders)}); move the images into class "
                "folders, or list all of them in metadata.csv"
            )
        if direct or label_file or not folders:
            return place
        splits = _splits(path, folders)
        if splits and not (has_splits and set(splits) == {split}):
            if has_splits or split not in splits:
                raise InputError(_no_split(path, split, splits, has_splits))
            has_splits = True
            inside = _below(files, depth)
            others = {name: inside[f] for name, f in splits.items() if name != split}
            name = splits[split]
        elif len(folders) == 1:
            name = folders[0]
        else:
            _check_split_words(path, folders)
            return place
        parts, files = (*parts, name), _below(files, depth)[name]


def _below(files: Sequence[FolderFile], depth: int) -> dict[str, list[FolderFile]]:
    """The files by the sub-folder that they are in."""
    inside: dict[str, list[FolderFile]] = {}
    for file in files:
        if len(file.parts) > depth + 1:
            inside.setdefault(file.parts[depth], []).append(file)
    return inside


def _label_file(path: Path, files: Sequence[FolderFile]) -> FolderFile | None:
    """The label file among the files of one folder.  Raises: InputError if there are two."""
    label_files = [file for file in files if file.kind == "label file"]
    if len(label_files) > 1:
        names = " and ".join(file.parts[-1] for file in label_files)
        raise InputError(f"{printable(str(path))} holds {names}: keep one of these label files")
    return label_files[0] if label_files else None


def _splits(path: Path, folders: Sequence[str]) -> dict[str, str]:
    """The folder of each split; empty if the folders are no splits."""
    splits: dict[str, str] = {}
    for name in folders:
        split = split_of(name)
        if split in splits:
            raise InputError(
                f"{printable(str(path))} holds both {splits[split]} and {name}, which name the "
                "same split: merge them, or move one away"
            )
        if split:
            splits[split] = name
    splits = {split: splits[split] for split in SPLITS if split in splits}
    rest = [name for name in folders if name not in splits.values()]
    if splits and rest:
        raise InputError(
            f"{printable(str(path))} holds {name_list([*splits.values()])}, which name splits, "
            f"beside {name_list(rest)}: if all of them are classes, or the latter no part of the "
            f"set, {ADVICE}"
        )
    return splits


def _check_split_words(path: Path, folders: Sequence[str]) -> None:
    """Raise InputError for folders that are probably splits, such as train2017 and val2017."""
    splits = {name: _split_in(name) for name in folders}
    suspects = [name for name, split in splits.items() if split]
    if len({*splits.values()} - {None}) > 1 and 2 * len(suspects) > len(folders):
        raise InputError(
            f"{printable(str(path))} holds the folders {name_list(suspects)}, whose names seem to "
            "mean splits: rename splits to train, valid and test; if they are classes, list the "
            "images in a metadata.csv with the columns file_name and label"
        )


def _split_in(name: str) -> str | None:
    """The split that a word in the name of a folder means."""
    words = [word.lower() for word in WORD.findall(name)]
    splits = (split_of(word) or split_of(NOUN.sub("", word)) for word in words)
    return next(filter(None, splits), None)


def _no_split(path: Path, split: str, splits: Mapping[str, str], has_splits: bool) -> str:
    names = name_list([*splits.values()])
    if has_splits:
        return (
            f"{printable(str(path))} is the folder of a split and holds others ({names}): {ADVICE}"
        )
    first = next(iter(splits))
    return (
        f"{printable(str(path))} has no split {split!r}, but {names}: set data.split={first}, or "
        f"give the folder {printable(str(path / splits[first]))} itself"
    )


def check_classes(place: Place, path: Path) -> None:
    """Raise InputError for sub-folders that are probably no classes: shards, or around splits."""
    depth = len(place.parts)
    images = [file for file in place.files if file.kind == "image"]
    own = split_of(place.parts[-1]) if place.has_splits else None
    for file in images:
        splits = [name for name in file.parts[depth + 1 : -1] if split_of(name) not in (None, own)]
        if splits:
            raise InputError(
                f"{printable(str(path))} holds the folder of a split inside a class "
                f"({printable('/'.join(file.parts[depth:]))}): move the splits above the classes, "
                f"as in {splits[0]}/{printable(file.parts[depth])}, or rename the folder"
            )
    if _are_shards(place, images):
        raise InputError(
            f"{printable(str(path))} holds the folders {name_list(place.folders)}, which seem to "
            "be shards of one sequence of images, not classes: add the dataset.json that belongs "
            'to them, or one with {"labels": null}; or rename the folders if they are classes'
        )


def _are_shards(place: Place, images: Sequence[FolderFile]) -> bool:
    """Whether the folders have numbers of one length, and the images are numbered on from each to
    the next, as in 00000/img00000999.png and 00001/img00001000.png."""
    lengths = {len(name) for name in place.folders}
    if len(lengths) > 1 or not all(map(SHARD.fullmatch, place.folders)):
        return False
    ranges: dict[str, tuple[int, int]] = {}
    for file in images:
        match = LAST_NUMBER.search(file.parts[-1].rpartition(".")[0][-40:])
        if not match:
            return False
        number, name = int(match[1]), file.parts[len(place.parts)]
        low, high = ranges.get(name, (number, number))
        ranges[name] = min(low, number), max(high, number)
    ordered = [ranges[name] for name in sorted(ranges)]
    return all(a[1] < b[0] for a, b in zip(ordered, ordered[1:], strict=False))
