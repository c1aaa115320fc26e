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
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin, get_type_hints

from fewstep import plugins
from fewstep.errors import InputError, did_you_mean


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
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if get_origin(kind) in (Union, UnionType):
        options = [option for option in get_args(kind) if option is not NoneType]
        if value is None and len(options) < len(get_args(kind)):
            return None
        # a table can only be one of the dataclasses, and any other value none of them
        table = isinstance(value, Mapping)
        fitting = [o for o in options if table == (isinstance(o, type) and is_dataclass(o))]
        options = fitting if len(options) > 1 else options
        kind = options[0] if len(options) == 1 else kind
    if getattr(kind, "noun", None) is not None:
        return _by_name(kind, value, table_key, allow_code)
    if isinstance(kind, type) and is_dataclass(kind):
        return _dataclass(kind, _mapping(value, table_key), table_key, allow_code)
    inner = get_args(kind)
    if get_origin(kind) is dict and is_dataclass(inner[1]):
        items = _mapping(value, table_key).items()
        return {
            key: from_table(inner[1], item, f"{table_key}.{key}", allow_code=allow_code)
            for key, item in items
        }
    if get_origin(kind) is tuple and is_dataclass(inner[0]) and isinstance(value, list):
        return tuple(
            from_table(inner[0], item, f"{table_key}.{index}", allow_code=allow_code)
            for index, item in enumerate(cast(list[Any], value))
        )
    return _leaf(kind, value, table_key)


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
    name = _mapping(table, table_key).get("name")
    if not isinstance(name, str):
        choices = ", ".join(plugins.names(noun))
        raise InputError(f"{table_key} lacks a name; choose one of {choices}")
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
            raise InputError(f"unknown key {table_key}.{key}{near}")
    values = {
        key: from_table(hints[key], value, f"{table_key}.{key}", allow_code=allow_code)
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


@cache
def field_types(kind: Any) -> dict[str, Any]:
    """The type of each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _mapping(value: Any, table_key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{table_key} is {value!r}, but must be a table of settings")
    return cast(Mapping[str, Any], value)


def _leaf(kind: Any, value: Any, table_key: str) -> Any:
    from pydantic import ValidationError

    try:
        # JSON mode checks types strictly, but accepts a list for a tuple
        return _adapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join([table_key, *(str(part) for part in first["loc"])])
        raise InputError(f"{key} is {first['input']!r}: {first['msg']}") from error


@cache
def _adapter(kind: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # no setting means anything as NaN or infinity, and comparisons with NaN hide it from checks
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
