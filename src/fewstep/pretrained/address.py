"""Options in addresses of checkpoints: `source:PATH?key=value&key=value`."""

from dataclasses import fields
from pathlib import Path
from typing import TypeVar

from fewstep.errors import InputError, did_you_mean
from fewstep.paths import expand_home
from fewstep.tables import field_types

Options = TypeVar("Options")


def split_options(rest: str) -> tuple[str, dict[str, str]]:
    """Split `PATH?key=value&key=value` into the path and its options.

    The path ends at the last question mark, unless the whole text is an existing path. Raises
    InputError for an option without a value, or one that is set twice.
    """
    path, mark, query = rest.rpartition("?")
    if not mark or Path(expand_home(rest)).exists():
        return rest, {}
    options: dict[str, str] = {}
    for part in query.split("&"):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise InputError(
                f"the option {part!r} in {rest} has no value: write {path}?key=value&key=value"
            )
        if key in options:
            raise InputError(f"the option {key} is set twice in {rest}: leave one")
        options[key] = value
    return path, options


def parse_options(kind: type[Options], options: dict[str, str], address: str) -> Options:
    """Options as a frozen dataclass, whose field types determine how their text is read.

    Items of a tuple are separated by commas. Raises InputError for an unknown key or a value that
    does not fit its type.
    """
    from pydantic import TypeAdapter, ValidationError

    hints = field_types(kind)
    values: dict[str, object] = {}
    for key, text in options.items():
        if key not in hints:
            choices = ", ".join(field.name for field in fields(kind))  # pyright: ignore[reportArgumentType]
            raise InputError(
                f"unknown option {key!r} in {address}{did_you_mean(key, hints)} (choose from "
                f"{choices})"
            )
        value = tuple(text.split(",")) if "tuple" in str(hints[key]) else text
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"]
            raise InputError(f"{key}={text} in {address} is not supported: {problem}") from None
    return kind(**values)
