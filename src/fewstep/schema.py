"""Recipe files as tables, and the keys that they may have, read from source code.

`fewstep train RECIPE --help` and the error for a mistyped key must not wait until torch is
imported. So this module reads the names, defaults and docstrings of a recipe's dataclasses from
their source code. `recipe.parse`, which imports the classes, checks the values.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

from fewstep import plugins
from fewstep.checksums import check_toml
from fewstep.errors import InputError, did_you_mean
from fewstep.overrides import apply_override, parse_toml
from fewstep.paths import check_kind, read_text

Table = Mapping[str, Any]
RUN_RECIPE = "recipe.toml"
"""Name of the recipe in a run folder."""


@dataclass(frozen=True)
class ClassSource:
    """The syntax tree of a class and the name of its module, which is not imported."""

    module: str
    node: ast.ClassDef


@dataclass(frozen=True)
class FieldSource:
    """The syntax trees of a dataclass field, and its docstring."""

    module: str
    annotation: ast.expr
    default: ast.expr | None
    doc: str


def preset_names() -> list[str]:
    """Names of the recipes that are part of the package."""
    folder = resources.files("fewstep") / "presets"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith("toml"))


def read_table(name: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The nested tables of a preset or a TOML file, with `key=value` overrides.

    Raises InputError for an unknown preset, invalid TOML, or an unknown key.
    """
    path = Path(name)
    if path.suffix.lower() == ".toml":
        if not path.exists():
            raise InputError(f"no such recipe file: {name}; give a TOML file or a preset's name")
        text = read_text(path)
        # the recipe in a run folder; a copy of another name may be edited
        if path.name == RUN_RECIPE and check_toml(text) is False:
            raise InputError(
                f"{name} was changed or is damaged: its last line does not have the checksum of "
                "the others: remove that line to use the recipe as it is"
            )
    elif name in preset_names():
        text = (resources.files("fewstep") / "presets" / f"{name}.toml").read_text("utf-8")
    else:
        check_kind(path, "recipe")
        raise InputError(
            f"unknown recipe {name!r}{did_you_mean(name, preset_names())}; give a TOML file or "
            "the name of a preset (`fewstep list recipes` lists them)"
        )
    table = parse_toml(text, name)
    for section in table:
        _check_section(table, section)
    for override in overrides:
        apply_override(table, override, _is_text)
        _check_section(table, override.partition("=")[0].partition(".")[0])
    check_keys(table)
    return table


def check_keys(table: Table) -> None:
    """Raise InputError for a key that its section or table does not have."""
    for key, fields in _tables(table):
        if fields is None:
            continue
        for name in _at(table, key):
            if name not in fields and name != "name":
                raise InputError(_unknown_key(f"{key}.{name}" if key else name, table))


def explain(table: Table) -> Iterator[tuple[str, str, str]]:
    """(key, value, meaning) of every key that a recipe can set, those of the method first.

    The value, as JSON, is the recipe's, else the default; it is "" for a key without a default.
    """
    name, choices = table.get("method", {}).get("name"), ", ".join(plugins.names("method"))
    yield "method.name", json.dumps(name), choices
    sections = _sections(table)
    for section in sorted(sections, key=lambda section: section != "method"):
        for key, field in (sections[section] or {}).items():
            present = table.get(section, {})
            default = _text(field.default) if section in table or section in _REQUIRED else ""
            yield (
                f"{section}.{key}",
                json.dumps(present[key], default=str) if key in present else default,
                field.doc,
            )


_RECIPE = ("fewstep.recipe", "Recipe")
_REQUIRED = ("about", "data", "method", "student", "fit", "evaluate")


def summary(address: str) -> str:
    """The first sentence of the docstring at an address "module:name"; "" if there is none."""
    module, _, name = address.partition(":")
    for node in _parse(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            text = " ".join((ast.get_docstring(node) or "").split())
            return re.split(r"(?<=[.!?]) ", text)[0]
    return ""


def _sections(table: Table) -> dict[str, dict[str, FieldSource] | None]:
    """The fields of each section; None where they cannot be read."""
    sections: dict[str, dict[str, FieldSource] | None] = {}
    for name, field in _fields(_find_class(*_RECIPE)).items():
        if name == "method":
            sections[name] = _fields(_method_config(table)) or None
        elif name != "method_name":
            kind = _class_of(field, table.get(name, {}))
            sections[name] = _fields(kind) or None
    return sections


def _tables(table: Table) -> Iterator[tuple[str, dict[str, FieldSource] | None]]:
    """The dotted key of each table in a recipe, and its possible fields; outermost first."""
    sections = _sections(table)
    yield "", cast(dict[str, FieldSource], dict.fromkeys(sections))
    queue = [(name, sections[name], table[name]) for name in sections if name in table]
    while queue:
        key, fields, value = queue.pop(0)
        if not isinstance(value, Mapping):
            continue
        yield key, fields
        for name, field in (fields or {}).items():
            inner = value.get(name)
            if not isinstance(inner, Mapping):
                continue
            kind = _fields(_class_of(field, inner)) or None
            if _is_dict(field):
                queue += [(f"{key}.{name}.{each}", kind, inner[each]) for each in inner]
            else:
                queue.append((f"{key}.{name}", kind, inner))


def _check_section(table: Table, section: str) -> None:
    is_section = section in _fields(_find_class(*_RECIPE))
    if is_section and not isinstance(table[section], Mapping):
        raise InputError(
            f"{section} is {table[section]!r}, but a recipe has sections of keys: write "
            f"{section}.KEY=VALUE, or KEY = VALUE below [{section}]"
        )


def _is_text(table: Table, key: str) -> bool:
    """Whether a key's value is text, or None."""
    section, *parts = key.split(".")
    fields, inner, field = _sections(table).get(section), table.get(section, {}), None
    for part in parts:
        field = (fields or {}).get(part)
        if field is None:
            return False
        inner = inner.get(part, {}) if isinstance(inner, Mapping) else {}
        fields = _fields(_class_of(field, inner if isinstance(inner, Mapping) else {}))
    return field is not None and {*_type_names(field)} <= {"str", "Address"}


def _at(table: Table, key: str) -> Table:
    """The inner table at a dotted key; the table itself for ""."""
    for part in key.split(".") if key else ():
        table = table[part]
    return table


def _unknown_key(key: str, table: Table) -> str:
    """The message for an unknown key.

    It suggests a key of the same name in another table, else the most similar key of its table.
    """
    parent, _, name = key.rpartition(".")
    parents = {
        f"{table_key}.{field}" if table_key else field: table_key
        for table_key, fields in _tables(table)
        for field in fields or ()
    }
    siblings = [k.rpartition(".")[2] for k, table_key in parents.items() if table_key == parent]
    same_name = [k for k in parents if k.rpartition(".")[2] == name]
    hint = f"; did you mean {same_name[0]}?" if same_name else ""
    hint = hint or did_you_mean(name, siblings, prefix=f"{parent}." if parent else "")
    kind = _at(table, parent).get("name") if "." in parent else None
    if isinstance(kind, str) and not hint:
        hint = f" ({kind} has {', '.join(siblings) or 'no settings'})"
    return f"unknown recipe key {key}{hint}"


def _method_config(table: Table) -> ClassSource | None:
    """The settings class of the recipe's method, `DmdConfig` in `class Dmd(Method[DmdConfig])`."""
    name = _table_name(table.get("method", {}), "method")
    method = _find_class(*_address("method", name).split(":"))
    for each in _with_bases(method) if method else ():
        for base in each.node.bases:
            if isinstance(base, ast.Subscript):
                kind = _find_class(each.module, ast.unparse(base.slice))
                if kind and _fields(kind):
                    return kind
    return None


def _address(noun: str, name: str) -> str:
    address = plugins.registered_address(noun, name)
    if address is None and ":" not in name:
        plugins.resolve(noun, name)  # raises InputError with the registered names
    return address or name


def _table_name(table: Any, table_key: str) -> str:
    name = table.get("name") if isinstance(table, Mapping) else None
    if not isinstance(name, str):
        choices = ", ".join(plugins.names("method"))
        raise InputError(f"{table_key} lacks a name; choose one of {choices}")
    return name


def _class_of(field: FieldSource, table: Table) -> ClassSource | None:
    """The class that a table describes.

    It is the class that the table's `name` selects if the field's type is a noun's base class,
    else the type itself.
    """
    kinds = [kind for name in _type_names(field) if (kind := _find_class(field.module, name))]
    if len(kinds) != 1:
        return None
    noun, name = _noun(kinds[0]), table.get("name")
    if noun is None or not isinstance(name, str):
        return kinds[0]
    return _find_class(*_address(noun, name).split(":"))


def _type_names(field: FieldSource) -> list[str]:
    """The names in a field's type, without those in the ranges of `Annotated`."""
    ranges = {
        inner
        for node in ast.walk(field.annotation)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Annotated"
        for each in cast(ast.Tuple, node.slice).elts[1:]
        for inner in ast.walk(each)
    }
    nodes = (node for node in ast.walk(field.annotation) if node not in ranges)
    return [node.id for node in nodes if isinstance(node, ast.Name)]


def _is_dict(field: FieldSource) -> bool:
    return ast.unparse(field.annotation).startswith("dict[")


def _noun(kind: ClassSource) -> str | None:
    for each in _with_bases(kind):
        for node in each.node.body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "noun":
                return ast.literal_eval(node.value) if node.value else None
    return None


def _fields(kind: ClassSource | None) -> dict[str, FieldSource]:
    """The fields of a dataclass; those of its base classes come first."""
    fields: dict[str, FieldSource] = {}
    for each in reversed(_with_bases(kind) if kind else []):
        body = each.node.body
        for node, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
                continue
            doc = ast.unparse(following) if isinstance(following, ast.Expr) else "''"
            text = " ".join(ast.literal_eval(doc).split()) if doc[0] in "'\"" else ""
            fields[ast.unparse(node.target)] = FieldSource(
                each.module, node.annotation, node.value, text
            )
    return fields


def _with_bases(kind: ClassSource) -> list[ClassSource]:
    names = [base.value if isinstance(base, ast.Subscript) else base for base in kind.node.bases]
    bases = [_find_class(kind.module, ast.unparse(name)) for name in names]
    return [kind, *(inner for base in bases if base for inner in _with_bases(base))]


@cache
def _find_class(module: str, name: str) -> ClassSource | None:
    """The class that has this name in a module, also if it is imported there; None if not found."""
    for node in ast.walk(_parse(module)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return ClassSource(module, node)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find_class(node.module, alias.name)
    return None


@cache
def _parse(module: str) -> ast.Module:
    """The syntax tree of a module, without importing it; empty if it has no source file."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        spec = None
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    files = [folder.joinpath(*rest).with_suffix(".py") for folder in folders if rest]
    files += [folder.joinpath(*rest) / "__init__.py" for folder in folders]
    files += [Path(spec.origin)] if spec and spec.origin and not rest else []
    source = next((path.read_text("utf-8") for path in files if path.is_file()), "")
    return ast.parse(source)


def _text(default: ast.expr | None) -> str:
    """A default as JSON, or as source code if it is not a literal; "" for None or no default."""
    if default is None:
        return ""
    try:
        value = ast.literal_eval(default)
    except ValueError:
        factory = re.match(r"field\(default_factory=(lambda: )?(.*)\)$", ast.unparse(default))
        if factory is None:
            return ast.unparse(default)
        return factory[2] if factory[1] else f"{factory[2]}()"
    return "" if value is None else json.dumps(value)
