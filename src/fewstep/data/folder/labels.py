"""Number classes by the names of their folders, or by the labels that a table lists."""

import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal

from fewstep.errors import InputError
from fewstep.formatting import printable

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,9})?", re.IGNORECASE)
WITH_COMMAS = re.compile(r"[+-]?[0-9]+([\s,;|]+[+-]?[0-9]+)+")
MISSING = frozenset(
    {"nan", "-nan", "null", "n/a", "NaN", "-NaN", "NAN", "NULL", "N/A", "NA", "#N/A", "#NA"}
    | {"<NA>", "None", "inf", "-inf", "Infinity", "-Infinity"}
)
"""How spreadsheets and pandas write a missing value."""
MAX_LABEL = 1 << 31

Numbered = tuple[list[int], tuple[str, ...]]
"""The class number of each image, and the names of the classes."""


def number_folders(folders: Sequence[str]) -> Numbered:
    """The classes of images by the name of each one's folder, sorted as numbers if all are.

    Raises: InputError for names that are not Unicode, or that differ only in case or spaces.
    """
    names = list(dict.fromkeys(folders))
    for name in names:
        _check_unicode(name, f"the folder {printable(name)}")
    _check_alike(names, lambda name: f"the folder {name}")
    are_integers = all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names)
    if are_integers:
        values: dict[int, str] = {}
        for name in names:
            other = values.setdefault(int(name), name)
            if other != name:
                raise InputError(
                    f"the folders {other} and {name} are the same number: merge or rename them"
                )
    return _numbered(folders, sorted(names, key=int if are_integers else str))


def number_labels(labels: Sequence[str], places: Sequence[str]) -> Numbered:
    """The classes of images by their labels: numbers from 0 without gaps, or sorted names.

    `places[i]` is where label i is in its table, for messages. Spaces around labels do not count,
    and 0.0 is the number 0.

    Raises: InputError with the place of a label that is missing or cannot be understood.
    """
    labels = [unicodedata.normalize("NFC", label.strip()) for label in labels]
    first: dict[str, str] = {}
    for label, place in zip(labels, places, strict=True):
        first.setdefault(label, place)
    for label, place in first.items():
        _check_label(label, place)
    numbers = {label: number for label in first if (number := _number(label)) is not None}
    if not numbers:
        _check_alike([*first], lambda label: f"the label {label!r} ({first[label]})")
        return _numbered(labels, sorted(first))
    text = next((label for label in first if label not in numbers), None)
    if text is not None:
        number = next(iter(numbers))
        raise InputError(
            f"{first[text]}: the label is {text!r}, but {number!r} in {_short(first[number])} is a "
            "number: label all images with numbers, or all with names"
        )
    integers = {label: _integer(number, first[label]) for label, number in numbers.items()}
    _check_integers(integers, first)
    names = tuple(str(number) for number in range(len(integers)))
    return [integers[label] for label in labels], names


def _numbered(labels: Sequence[str], names: Sequence[str]) -> Numbered:
    number = {name: i for i, name in enumerate(names)}
    return [number[label] for label in labels], tuple(names)


def _check_label(label: str, place: str) -> None:
    if not label:
        raise InputError(f"{place}: a label is empty; label all images, or none")
    if label in MISSING:
        raise InputError(
            f"{place}: the label {label!r} is a missing value; label every image, or rename the "
            "class if this is its name"
        )
    if WITH_COMMAS.fullmatch(label):
        raise InputError(
            f"{place}: the label {label!r} may be several numbers, or one with a separator; "
            "write one number, or use names"
        )
    _check_unicode(label, f"{place}: the label {printable(label)}")


def _check_unicode(name: str, noun: str) -> None:
    """Raise InputError for a name with lone surrogates or control characters."""
    if any(unicodedata.category(character) in ("Cs", "Cc") for character in name):
        encoding = name.encode(
            "utf-8", "surrogateescape" if _is_bytes(name) else "backslashreplace"
        )
        raise InputError(
            f"{noun} would name a class, but is not text in UTF-8 without control characters (its "
            f"bytes are {encoding!r}): rename it"
        )


def _is_bytes(name: str) -> bool:
    """Whether Python can turn the name of a file back into its bytes."""
    return all("\udc80" <= c <= "\udcff" for c in name if unicodedata.category(c) == "Cs")


def _check_alike(names: Sequence[str], describe: Callable[[str], str]) -> None:
    """Raise InputError for two names that differ only in case, spaces or other characters for the
    same letters; the case of single letters may differ."""
    alike: dict[str, str] = {}
    for name in names:
        visible = (c for c in name if unicodedata.category(c) != "Cf")  # no zero-width spaces
        key = " ".join(unicodedata.normalize("NFKC", "".join(visible)).split())
        other = alike.setdefault(key.casefold() if len(key) > 1 else key, name)
        if other != name:
            raise InputError(
                f"{describe(name)} and {describe(other)} differ only in case, spaces or the "
                "encoding of letters: spell them alike if they are one class, else more distinctly"
            )


def _number(label: str) -> Decimal | None:
    """The number that a label spells; None for a name."""
    # the digits of all scripts, such as full-width ones
    digits = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in label)
    return Decimal(digits) if len(digits) < 100 and NUMBER.fullmatch(digits) else None


def _integer(number: Decimal, place: str) -> int:
    if not -MAX_LABEL < number < MAX_LABEL or number != number.to_integral_value():
        raise InputError(
            f"{place}: the label {number} is not the number of a class; number classes from 0 "
            "without gaps, or use names"
        )
    return int(number)


def _check_integers(integers: dict[str, int], first: dict[str, str]) -> None:
    """Raise InputError for two spellings of one number, and for numbers with gaps."""
    spelling: dict[int, str] = {}
    for label, number in integers.items():
        other = spelling.setdefault(number, label)
        if other != label:
            raise InputError(
                f"{first[label]}: the label {label!r} is the same number as {other!r} in "
                f"{_short(first[other])}: write both alike"
            )
    absent = set(range(len(spelling))) - set(spelling)
    if absent:
        low, high = min(spelling), max(spelling)
        extreme = low if low < 0 else high
        raise InputError(
            f"{first[spelling[extreme]]}: labels range from {low} to {high}, but no image has "
            f"label {min(absent)}; number classes from 0 without gaps, or use names"
        )


def _short(place: str) -> str:
    """The place without its file."""
    return place.rpartition(", ")[2]
