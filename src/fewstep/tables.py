"""Convert frozen dataclasses to nested tables, as in recipes and weights files, and back.

A field whose type is the base class of a noun, such as `Grid`, becomes a table with a `name`, which
`plugins` resolves; its other keys are the fields of the class of that name. A string in place of a
table is the name alone. pydantic checks all other fields. An unknown key raises an error that
suggests the nearest key.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from annotated_types import MinLen

from fewstep import plugins
from fewstep.errors import InputError, did_you_mean
from fewstep.paths import expand_home
from fewstep.ranges import Address, describe, split


def to_table(value: Any) -> Any:
    """A dataclass as nested dicts and lists, and a `name` for a class of a noun."""
    noun = getattr(value, "noun", None)
    if noun is not None and "__dataclass_fields__" not in vars(type(value)):
        name = type(value).__name__
        raise InputError(
            f"the {noun} {name} is no dataclass: write @dataclass(frozen=True) above it"
        )
    if is_dataclass(value) and not isinstance(value, type):
        table = {field.name: to_table(getattr(value, field.name)) for field in fields(value)}
        return table if noun is None else {"name": plugins.name_of(noun, type(value)), **table}
    if isinstance(value, Mapping):
        return {key: to_table(inner) for key, inner in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [to_table(inner) for inner in cast(Collection[Any], value)]
    return value


def from_table(
    kind: Any, value: Any, table_key: str, *, allow_code: Collection[str] | None = None
) -> Any:
    """The value of type `kind` that a table describes.

    `table_key` is its dotted key, for error messages; for `allow_code` see `plugins.resolve`.
    Raises InputError for an unknown key or name, a missing key, or a value of the wrong type.
    """
    kind = _option(kind, value, table_key)
    bare, _ = split(kind)
    if bare is NoneType:
        return None
    if getattr(bare, "noun", None) is not None:
        return _by_name(bare, value, table_key, allow_code)
    if isinstance(bare, type) and is_dataclass(bare):
        return _dataclass(bare, _mapping(value, table_key), table_key, allow_code)
    inner = get_args(bare)
    if get_origin(bare) is dict and is_dataclass(inner[1]):
        items = _mapping(value, table_key).items()
        return {
            key: from_table(inner[1], item, f"{table_key}.{key}", allow_code=allow_code)
            for key, item in items
        }
    if get_origin(bare) is tuple and isinstance(value, list):
        items = cast(list[Any], value)
        kinds = inner[:1] * len(items) if Ellipsis in inner else inner
        if len(kinds) != len(items):
            raise _wrong(kind, value, table_key)
        check(kind, tuple(items), table_key)  # first their number, which may be large
        return tuple(
            from_table(each, item, f"{table_key}.{index}", allow_code=allow_code)
            for index, (each, item) in enumerate(zip(kinds, items, strict=True))
        )
    return check(kind, value, table_key)


def check(kind: Any, value: Any, table_key: str) -> Any:
    """The value, if it is of type `kind` and in its range; an int for a float becomes one.

    Raises: InputError with the key, the value and what is allowed.
    """
    from pydantic import ValidationError

    bare, limits = split(kind)
    if get_origin(bare) is dict and isinstance(value, Mapping):
        return _json_table(cast(Mapping[str, Any], value), table_key)
    if bare is str and isinstance(value, str):
        # pydantic refuses paths that are not UTF-8
        if kind is not Address:
            return value
        if not value:  # which would be the current folder
            raise InputError(f"{table_key} is empty; it must be a path or an address")
        return expand_home(value)
    if get_origin(bare) is tuple and isinstance(value, tuple):
        # its items are checked one by one, so that an error names the first wrong one
        pydantic_kind = Annotated[tuple[Any, ...], *(limits or (MinLen(0),))]
    else:
        pydantic_kind = kind
    try:
        return _adapter(pydantic_kind).validate_python(value, strict=True)
    except (ValidationError, OverflowError) as error:
        raise _wrong(kind, value, table_key) from error


def check_fields(settings: Any, table_key: str) -> None:
    """Check the fields of a dataclass that was built by code.  Raises: InputError as `check`."""
    for name, kind in field_types(type(settings)).items():
        value, key = getattr(settings, name), f"{table_key}.{name}"
        if not is_dataclass(value) and not isinstance(value, Mapping):
            from_table(kind, to_table(value), key)


def _option(kind: Any, value: Any, table_key: str) -> Any:
    """The type that `value` can have, of those in a union; any other type is returned unchanged.

    Raises: InputError for a value that is of no type of the union.
    """
    if get_origin(kind) not in (Union, UnionType):
        return kind
    options = [option for option in get_args(kind) if _could_be(option, value)]
    if not options:
        raise _wrong(kind, value, table_key)
    return options[0]


def _could_be(kind: Any, value: Any) -> bool:
    """Whether `value` has the form of `kind`; its range, and the items of a list, may be wrong."""
    bare, _ = split(kind)
    origin = get_origin(bare) or bare
    if origin is Literal:
        return isinstance(value, str | int)
    if getattr(bare, "noun", None) is not None:
        return isinstance(value, Mapping | str)
    if origin is dict or is_dataclass(bare):
        return isinstance(value, Mapping)
    forms: dict[Any, Any] = {tuple: list | tuple, float: int | float, int: int | float}
    return isinstance(value, forms.get(origin, origin)) and (
        bare is bool or not isinstance(value, bool)
    )


def addresses(table: Any) -> list[str]:
    """The addresses `package.module:Class` that a table names, sorted."""
    if isinstance(table, Mapping):
        items = cast(Mapping[str, Any], table)
        name = items.get("name")
        own = {name} if isinstance(name, str) and ":" in name else set[str]()
        return sorted(own.union(*(addresses(inner) for inner in items.values())))
    if isinstance(table, list):
        return sorted({name for inner in cast(list[Any], table) for name in addresses(inner)})
    return []


def resolve_name(noun: str, table: Any, table_key: str, allow_code: Collection[str] | None) -> Any:
    """The class that a table's `name` selects.  Raises: InputError if the table has no name."""
    table = _mapping(table, table_key)
    name = table.get("name")
    if not isinstance(name, str):
        problem = f".name is {name!r}" if "name" in table else " lacks a name"
        raise InputError(f"{table_key}{problem}; choose one of {', '.join(plugins.names(noun))}")
    return plugins.resolve(noun, name, allow_code=allow_code)


def _by_name(kind: Any, value: Any, table_key: str, allow_code: Collection[str] | None) -> Any:
    value = {"name": value} if isinstance(value, str) else value
    if "name" not in _mapping(value, table_key) and not inspect.isabstract(kind):
        return _dataclass(kind, value, table_key, allow_code)  # the field's type is the only choice
    subclass = resolve_name(kind.noun, value, table_key, allow_code)
    if not (isinstance(subclass, type) and issubclass(subclass, kind) and is_dataclass(subclass)):
        choices = [
            name
            for name in plugins.names(kind.noun)
            if issubclass(plugins.resolve(kind.noun, name), kind)
        ]
        raise InputError(
            f"{table_key}.name is {value['name']!r}, which is not a {kind.__name__}; choose one of "
            f"{', '.join(choices)}"
        )
    table = {key: inner for key, inner in value.items() if key != "name"}
    return _dataclass(subclass, table, table_key, allow_code)


def _dataclass(
    kind: type, table: Mapping[str, Any], table_key: str, allow_code: Collection[str] | None
) -> Any:
    hints = field_types(kind)
    for key in table:
        if key not in hints:
            near = did_you_mean(key, hints, prefix=f"{table_key}.")
            raise InputError(f"unknown key {table_key}.{key}{near}{_settings_of(kind)}")
    defaults = {field.name: field for field in fields(kind)}
    values = {
        key: from_table(
            hints[key],
            _with_default(defaults[key], value),
            f"{table_key}.{key}",
            allow_code=allow_code,
        )
        for key, value in table.items()
    }
    for field in fields(kind):
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in values:
            raise InputError(f"{table_key}.{field.name} is missing: it has no default")
    try:
        return kind(**values)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{table_key}: {error}") from error


def _with_default(field: Field[Any], value: Any) -> Any:
    """A table without a name, with the name and settings of the field's default added."""
    if not isinstance(value, Mapping) or "name" in value or field.default_factory is MISSING:
        return value
    default = to_table(field.default_factory())
    named = isinstance(default, dict) and "name" in default
    return {**cast(dict[str, Any], default), **value} if named else value


def _settings_of(kind: Any) -> str:
    """The end of an error message: the settings of a class that is selected by name."""
    if getattr(kind, "noun", None) is None:
        return ""
    names = ", ".join(field_types(kind)) or "no settings"
    return f" ({plugins.name_of(kind.noun, kind)} has {names})"


@cache
def field_types(kind: Any) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _mapping(value: Any, table_key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{table_key} is {value!r}; it must be a table of settings")
    return cast(Mapping[str, Any], value)


def _json_table(value: Mapping[str, Any], table_key: str) -> dict[str, Any]:
    """A table of any settings, if they can be saved in a weights file, whose text is JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{table_key} has a value that is no text, finite number, list or table: {error}"
        ) from error
    return dict(value)


def _wrong(kind: Any, value: Any, table_key: str) -> InputError:
    """The error for a value that is not of type `kind`, or out of its range."""
    text = repr(list(value) if isinstance(value, tuple) else value)
    text = text if len(text) <= 60 else f"{text[:57]}…"
    return InputError(f"{table_key} is {text}; it must be {describe(kind)}")


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # no setting means anything as NaN or infinity, and comparisons with NaN hide it from checks
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
