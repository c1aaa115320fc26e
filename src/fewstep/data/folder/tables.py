"""Read label files: `metadata.csv`, `.tsv` or `.jsonl`, and StyleGAN's and EDM's `dataset.json`."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.data.account import name_list
from fewstep.data.folder.captions import split_captions
from fewstep.data.folder.reading import read_text
from fewstep.errors import InputError
from fewstep.formatting import printable

FILE_COLUMNS = frozenset(
    "file_name filename file image path file_path filepath image_path img img_path image_file "
    "image_name fname".split()
)
LABEL_COLUMNS = frozenset(
    "label labels class classes category target class_name class_label label_name class_id "
    "label_id category_id".split()
)
CAPTION_COLUMNS = frozenset("text texts caption captions".split())
SPLIT_COLUMN = "split"
SEPARATORS = (",", ";", "\t", "|")
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Row:
    """One image of a table."""

    place: str
    """File and line, for messages."""
    file: str
    """Path of the image as the table has it."""
    label: str | None = None
    """None without a column of labels."""
    split: str | None = None
    captions: tuple[str, ...] | None = None
    """None without a column of captions."""
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    """The values of all other columns."""


def read_table(path: Path) -> list[Row] | None:
    """The rows of a label file. None if it only says that the images have no labels.

    Raises: InputError with the line of what cannot be understood.
    """
    kind, name = path.name.lower(), printable(str(path))
    text = read_text(path, limit=MAX_BYTES)
    if kind in ("metadata.csv", "metadata.tsv"):
        return _from_columns(name, *_read_csv(name, text))
    if kind == "metadata.jsonl":
        return _from_columns(name, *_read_jsonl(name, text))
    return _read_dataset(name, text)


Cells = tuple[str, Sequence[str]]
"""A line's place, and its values."""


def _read_csv(table: str, text: str) -> tuple[list[str], Iterator[Cells]]:
    """Names of the columns, and the rows."""
    rows = _csv_rows(table, text, _separator(table, text))
    _, names = next(rows)
    return _drop_unnamed(table, [name.strip() for name in names], rows)


def _separator(table: str, text: str) -> str:
    """The separator with which the first line names a column of files."""
    columns: list[str] = []
    for separator in SEPARATORS:
        with suppress(InputError):  # such as of quotes beside another separator
            _, names = next(_csv_rows(table, text, separator), ("", ()))
            if any(name.strip().lower() in FILE_COLUMNS for name in names):
                return separator
            columns = max(columns, [*names], key=len)
    names = name_list([repr(name) for name in columns]) or "none"
    raise InputError(
        f"{table} has no column file_name, which must name the images; its columns are {names}, "
        "separated by commas, semicolons or tabs"
    )


def _csv_rows(table: str, text: str, separator: str) -> Iterator[Cells]:
    """The lines that are not empty, each with its place."""
    # quotes count after a space too
    reader = csv.reader(
        io.StringIO(text, newline=""), strict=True, delimiter=separator, skipinitialspace=True
    )
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield f"{table}, line {line}", cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{table}, line {line}, is not a line of CSV ({error}); repair it"
        ) from error


def _drop_unnamed(
    table: str, names: list[str], rows: Iterator[Cells]
) -> tuple[list[str], Iterator[Cells]]:
    """Leave out columns without a name that are empty, or number the rows as pandas does."""
    lines = [*rows]
    for place, cells in lines:
        if len(cells) != len(names):
            raise InputError(
                f"{place}, does not have one value per column: {len(cells)} instead of {len(names)}"
            )
    keep = [index for index, name in enumerate(names) if name]
    for index in set(range(len(names))) - set(keep):
        values = [cells[index].strip() for _, cells in lines]
        if any(values) and values != [str(number) for number in range(len(values))]:
            raise InputError(f"{table}: column {index + 1} has no name; name or remove it")
    return [names[i] for i in keep], ((place, [cells[i] for i in keep]) for place, cells in lines)


def _read_jsonl(table: str, text: str) -> tuple[list[str], Iterator[Cells]]:
    """Names of the columns, which are all keys, and the rows; an absent value is empty."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{table}, line {number}"
            row = _parse(line, place)
            if not isinstance(row, dict):
                raise InputError(f"{place}, is no JSON object; write one object per line")
            rows.append((place, row))
    names = list(dict.fromkeys(key for _, row in rows for key in row))
    return names, (
        (place, [_text(row.get(name), name, place) for name in names]) for place, row in rows
    )


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, place))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}, is not JSON ({error}); repair it") from error


def _unique(pairs: list[tuple[str, Any]], place: str) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{place}: {name!r} is there twice; remove one")
    return table


def _text(value: Any, name: str, place: str) -> str:
    """A JSON value as a cell of CSV would have it."""
    if value is None:
        return ""
    column = name.strip().lower()
    if column in CAPTION_COLUMNS and isinstance(value, list):
        if not all(isinstance(caption, str) for caption in value):
            raise InputError(f"{place}: {name} has more than texts in its list; write texts alone")
        return "\n".join(value)
    single = FILE_COLUMNS | LABEL_COLUMNS | CAPTION_COLUMNS
    if isinstance(value, list | dict) and column in single:
        raise InputError(f"{place}: {name} is {json.dumps(value)[:40]}, but must be one value")
    return value if isinstance(value, str) else json.dumps(value)


def _from_columns(table: str, names: list[str], rows: Iterator[Cells]) -> list[Row]:
    file = _column(table, names, FILE_COLUMNS, "images")
    label = _column(table, names, LABEL_COLUMNS, "labels")
    split = _column(table, names, frozenset({SPLIT_COLUMN}), "splits")
    if file is None:
        raise InputError(f"{table} has no column file_name; it must name the images")
    caption = _column(table, names, CAPTION_COLUMNS, "captions")
    others = [i for i in range(len(names)) if i not in (file, label, split, caption)]
    if len({names[i] for i in others}) < len(others):
        raise InputError(f"{table} has two columns of the same name; rename or remove one")
    images: list[Row] = []
    for place, cells in rows:
        if not cells[file].strip():
            raise InputError(f"{place}, names no image in its column {printable(names[file])}")
        label_text = None if label is None else cells[label]
        split_text = None if split is None else cells[split].strip()
        captions = None if caption is None else split_captions(cells[caption], place)
        texts = {names[i]: cells[i] for i in others}
        images.append(Row(place, cells[file], label_text, split_text, captions, texts))
    return images


def _column(
    table: str, names: Sequence[str], column_names: frozenset[str], noun: str
) -> int | None:
    """The only column with one of the known names.  Raises: InputError if there are two."""
    indices = [i for i, name in enumerate(names) if name.strip().lower() in column_names]
    if len(indices) > 1:
        columns = " and ".join(printable(names[index]) for index in indices)
        raise InputError(
            f"{table} has {len(indices)} columns of {noun}, {columns}: keep or rename one"
        )
    return indices[0] if indices else None


def _read_dataset(table: str, text: str) -> list[Row] | None:
    """`{"labels": [["00000/img00000000.png", 6], ...]}`, or null in place of the list."""
    document = _parse(text, table)
    labels: Any = document.get("labels", ...) if isinstance(document, dict) else ...
    if labels is None:
        return None
    if isinstance(labels, dict):
        labels = [[name, label] for name, label in labels.items()]
    if not isinstance(labels, list):
        raise InputError(
            f'{table} is not the dataset.json of EDM and StyleGAN, {{"labels": [["00000/'
            'img00000000.png", 6], ...]}, or null without labels: rename it if it is another file'
        )
    rows: list[Row] = []
    for number, entry in enumerate(labels, 1):
        place = f"{table}, entry {number}"
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise InputError(f"{place}, is {json.dumps(entry)[:60]}, not [file, label]")
        rows.append(Row(place, entry[0], _text(entry[1], "label", place)))
    return rows
