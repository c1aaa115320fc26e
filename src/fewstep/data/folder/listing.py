"""The images that a label file lists, with their labels, splits and texts."""

import posixpath
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from fewstep.data.account import name_list
from fewstep.data.folder.files import FolderFile
from fewstep.data.folder.labels import number_labels
from fewstep.data.folder.layout import SPLITS, Place, split_of
from fewstep.data.folder.selection import Selection, select_unlabelled
from fewstep.data.folder.tables import Row, read_table
from fewstep.data.imageset import check_split
from fewstep.errors import InputError
from fewstep.formatting import printable

TEXTS = frozenset("prompt description group".split())
"""Names of columns, in lower case, that do not hold labels."""


def select_listed(place: Place, path: Path, label_file: FolderFile, split: str) -> Selection:
    """The images of `split` that the label file in the folder `path` lists.

    Raises: InputError with the line of an image that is missing, or is listed with two labels.
    """
    table = path / label_file.parts[-1]
    rows = read_table(table)
    if rows is None:
        return _select_without_list(place, table, split)
    if not rows:
        raise InputError(f"{printable(str(path))} holds no images: {table.name} lists none")
    files = _find_all(rows, place, path)
    labels, class_names = _labels(rows)
    splits = _splits(rows, files, place, table)
    first, repeated = _first_rows(rows, files, labels, splits)
    captions = _merge_captions(rows, files)
    indices = [i for i in first if splits[i] in (None, split)]
    if not indices:
        names = Counter(name for name in splits if name)
        raise InputError(
            f"{printable(str(table))} lists no image of the split {split!r}, but of "
            f"{', '.join(names)}: set data.split to one of these"
        )
    if splits[0] is None and not place.has_splits:
        check_split("folder", split, ["train"])
    indices.sort(key=lambda i: files[i].name)
    others = {name: [files[i] for i in first if splits[i] == name] for name in SPLITS}
    notes = _repetition_note(table, rows, repeated)
    if labels is None:
        notes += _no_labels_note(table, [files[i] for i in indices], place, [*rows[0].texts])
    return Selection(
        [files[i] for i in indices],
        None if labels is None else [labels[i] for i in indices],
        class_names,
        {name: tuple(rows[i].texts[name] for i in indices) for name in rows[0].texts},
        None if rows[0].captions is None else [captions[files[i].identity] for i in indices],
        {name: part for name, part in others.items() if part and name != split},
        notes,
    )


def _select_without_list(place: Place, table: Path, split: str) -> Selection:
    """All images of a place whose label file lists none."""
    if not place.has_splits:
        check_split("folder", split, ["train"])
        splits = [name for name in place.folders if split_of(name)]
        if splits:
            raise InputError(
                f"{printable(str(table))} lists no images, so that those of all splits "
                f"({name_list(splits)}) would be mixed: put a copy of it into each of them"
            )
    return select_unlabelled(place)


def _labels(rows: Sequence[Row]) -> tuple[Sequence[int] | None, tuple[str, ...]]:
    """Class numbers of all rows, so that they are the same for every split."""
    labels = [row.label for row in rows if row.label is not None]
    return number_labels(labels, [row.place for row in rows]) if labels else (None, ())


def _find_all(rows: Sequence[Row], place: Place, path: Path) -> list[FolderFile]:
    """The file of each row.  Raises: InputError if some are missing."""
    by_name = {"/".join(file.parts[len(place.parts) :]): file for file in place.files}
    composed = {unicodedata.normalize("NFC", name): file for name, file in by_name.items()}
    files: list[FolderFile] = []
    missing: list[Row] = []
    for row in rows:
        candidates = _candidates(row)
        file = next((by_name[name] for name in candidates if name in by_name), None)
        file = file or composed.get(unicodedata.normalize("NFC", candidates[0]))
        if file is None:
            missing.append(row)
        elif not file.is_regular:
            raise InputError(f"{row.place}: {printable(row.file)} is {file.reason}: remove the row")
        else:
            files.append(file)
    if missing:
        others = len(missing) - 1
        noun = "that of another row" if others == 1 else f"those of {others:,} other rows"
        more = f", as {'is' if others == 1 else 'are'} {noun}" if others else ""
        raise InputError(
            f"{missing[0].place}: {printable(missing[0].file)} is missing in "
            f"{printable(str(path))}{more}{_hint(missing[0], by_name)}; correct or remove the row"
        )
    return files


def _candidates(row: Row) -> list[str]:
    """Names that a row may mean, relative to the folder of its table; the likeliest is first.

    Raises: InputError for a path that leads out of the folder.
    """
    names = [row.file, row.file.strip(), row.file.strip().replace("\\", "/")]
    is_absolute = names[1].startswith("/") or PureWindowsPath(names[1]).is_absolute()
    names = [posixpath.normpath(name) for name in names]
    if is_absolute or any(name.split("/")[0] == ".." for name in names):
        raise InputError(
            f"{row.place}: {printable(row.file)} leads out of the folder of the table: write paths "
            "relative to it, and link images that are elsewhere into it"
        )
    return names


def _hint(row: Row, by_name: dict[str, FolderFile]) -> str:
    """The only other file of the same name, whatever its folder, suffix and case."""
    base = _candidates(row)[-1].rpartition("/")[2].casefold()
    bases = {name: name.rpartition("/")[2].casefold() for name in by_name}
    near = [name for name in bases if base in (bases[name], bases[name].rpartition(".")[0])]
    return f" (did you mean {printable(near[0])}?)" if len(near) == 1 else ""


def _splits(
    rows: Sequence[Row], files: Sequence[FolderFile], place: Place, table: Path
) -> list[str | None]:
    """The split of each row, by the column split or else by folders; None if there are none."""
    if rows[0].split is not None:
        for row in rows:
            if split_of(row.split or "") is None:
                raise InputError(
                    f"{row.place}: the split is {printable(row.split or '')!r}; choose one of "
                    f"{', '.join(SPLITS)}, or rename the column if it has another meaning"
                )
        return [split_of(row.split or "") for row in rows]
    for name in rows[0].texts:
        values = {split_of(row.texts[name].strip()) for row in rows}
        if None not in values and len(values) > 1:
            raise InputError(
                f"{printable(str(table))}: the column {printable(name)} holds names of splits "
                f"({', '.join(sorted(map(str, values)))}): rename it to split if that is what it "
                "means, or remove it"
            )
    depth = len(place.parts)
    tops = [file.parts[depth] if len(file.parts) > depth + 1 else "" for file in files]
    splits = [None if place.has_splits else split_of(top) for top in tops]
    if None in splits and any(splits):
        inside = next(i for i, split in enumerate(splits) if split)
        raise InputError(
            f"{rows[inside].place}: the folder {tops[inside]} names a split, and "
            f"{rows[splits.index(None)].place} lists an image in none: add a column split to "
            f"{table.name}, or rename the folder"
        )
    return splits


def _first_rows(
    rows: Sequence[Row],
    files: Sequence[FolderFile],
    labels: Sequence[int] | None,
    splits: Sequence[str | None],
) -> tuple[list[int], list[int]]:
    """Numbers of the rows of different files, and of those that repeat others.

    Raises: InputError if two rows of one file differ, other than by their captions.
    """
    first: dict[tuple[int, int], int] = {}
    captions: dict[tuple[int, int], set[str]] = {}
    repeated: list[int] = []
    for i, (row, file) in enumerate(zip(rows, files, strict=True)):
        j = first.setdefault(file.identity, i)
        own = captions.setdefault(file.identity, set())
        is_repeated = own.issuperset(row.captions or ())
        own.update(row.captions or ())
        if j == i:
            continue
        if labels is not None and labels[i] != labels[j]:
            difference = f"the labels {rows[j].label} and {row.label}"
        elif splits[i] != splits[j]:
            difference = f"the splits {splits[j]} and {splits[i]}"
        elif row.texts != rows[j].texts:
            names = [name for name, text in row.texts.items() if text != rows[j].texts[name]]
            difference = f"different texts in the column {names[0]}"
        else:
            repeated += [i] if is_repeated else []
            continue
        raise InputError(
            f"{row.place}: {printable(row.file)} is the same image as {printable(rows[j].file)} in "
            f"{rows[j].place.rpartition(', ')[2]}, with {printable(difference)}: remove one of them"
        )
    return [*first.values()], repeated


def _merge_captions(
    rows: Sequence[Row], files: Sequence[FolderFile]
) -> dict[tuple[int, int], tuple[str, ...]]:
    """The different captions of each file, from all of its rows."""
    captions: dict[tuple[int, int], dict[str, None]] = {}
    for row, file in zip(rows, files, strict=True):
        captions.setdefault(file.identity, {}).update(dict.fromkeys(row.captions or ()))
    return {identity: tuple(own) for identity, own in captions.items()}


def _repetition_note(table: Path, rows: Sequence[Row], repeated: Sequence[int]) -> tuple[str, ...]:
    if not repeated:
        return ()
    lines = [rows[i].place.rpartition(", ")[2] for i in repeated]
    noun = "row repeats" if len(lines) == 1 else "rows repeat"
    return (f"{len(lines):,} {noun} others of {table.name} ({name_list(lines)})",)


def _no_labels_note(
    table: Path, files: Sequence[FolderFile], place: Place, columns: Sequence[str]
) -> tuple[str, ...]:
    """A note if folders or columns, other than one of texts, may be meant as labels."""
    columns = [name for name in columns if name.strip().lower() not in TEXTS]
    if columns:
        return (
            f"{table.name} has no column of labels, so that the images have none; its other "
            f"columns ({name_list(columns)}) are texts",
        )
    depth = len(place.parts)
    folders = dict.fromkeys(file.parts[depth] for file in files if len(file.parts) > depth + 1)
    if len(folders) < 2:
        return ()
    return (
        f"{table.name} has no column of labels, so that the images have none, although they are "
        f"in folders ({name_list([*folders])})",
    )
