"""Overrides of a recipe on the command line: `key=value`, whose value is TOML or plain text."""

import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, cast

from fewstep.errors import InputError

IsText = Callable[[Mapping[str, Any], str], bool]
"""Whether the key with this dotted name is text, in a recipe with this table."""


def parse_toml(text: str, name: str) -> dict[str, Any]:
    """The tables of TOML text.  Raises: InputError with the `name` of the text if it is invalid."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise InputError(f"{name} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # invalid TOML, and integers of thousands of digits
        raise InputError(f"{name} is not valid TOML: {error}") from error


def parse_choice(option: str, text: str) -> dict[str, Any]:
    """The table of a name, such as "heun", or of TOML, such as '{name="multistep", order=3}'.

    Raises: InputError, which names the `option`, for a table without a name and invalid TOML.
    """
    if not text.lstrip().startswith("{"):
        return {"name": text}
    try:
        parsed = parse_toml(f"value = {text}", "it")
    except InputError as error:
        raise InputError(
            f"{option} {text}: {error}; write a table as {option} '{{name=\"NAME\", key=1}}'"
        ) from error
    if len(parsed) > 1:
        raise InputError(f"{option} has several lines; write one table")
    value = parsed["value"]
    if not isinstance(value.get("name"), str):
        raise InputError(f'{option} {text} has no name; write {{name="NAME", key=1}}')
    return value


def apply_override(table: dict[str, Any], override: str, is_text: IsText) -> None:
    """Set the key of `override`, such as "fit.steps=100", in the recipe's table.

    Raises: InputError for an override without a key or value, or with a value that is no TOML.
    """
    key, equals, right = override.partition("=")
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise InputError(
            f"{override!r} does not set a key of the recipe; write key=value, such as fit.steps=100"
        )
    text = is_text(table, key)
    if not (right if text else right.strip()):
        raise InputError(f"{override} sets {key} to nothing: write a value after the =")
    value = _text(right) if text else _value(key, right)
    *parents, last = key.split(".")
    inner: Any = table
    for i, parent in enumerate(parents, 1):
        child: Any = inner.setdefault(parent, {})
        path = ".".join(parents[:i])
        if isinstance(child, str) and not is_text(table, path):
            child = inner[parent] = {"name": child}  # the short form of a table
        if not isinstance(child, dict):
            raise InputError(f"cannot set {key}: {path} is a value, not a table")
        inner = cast(dict[str, Any], child)
    inner[last] = value


def _text(right: str) -> str:
    """Text as it stands, or within the quotes of TOML."""
    if len(right) > 1 and right[0] == right[-1] and right[0] in "\"'":
        try:
            table = tomllib.loads(f"value = {right}")
        except ValueError:
            return right
        value = table.get("value")
        return value if isinstance(value, str) and len(table) == 1 else right
    return right


def _value(key: str, right: str) -> Any:
    try:
        table = parse_toml(f"value = {right}", f"{key}={right}")
    except InputError as error:
        # a word may lack the quotes of TOML, which the shell removes
        if re.fullmatch(r"[A-Za-z./~][\w./:~?&=,@+% -]*", right):
            return right
        raise InputError(
            f"{error}; text needs double quotes, and in a shell the override single quotes: "
            f"'{key}=\"{right}\"'"
        ) from error
    if len(table) > 1:
        raise InputError(f"{key} has several lines; write one value")
    return table["value"]
