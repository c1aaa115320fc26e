"""`fewstep list [recipes|methods|samplers|...]`: everything that is selected by name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from fewstep import plugins
from fewstep.cli import console
from fewstep.errors import InputError, did_you_mean
from fewstep.schema import preset_names, read_table, summary

PLURALS = {"process": "processes", "density": "densities", "data": "data", "levels": "levels"}
"""Plurals of the nouns that do not just take an s."""


@dataclass(frozen=True)
class Options:
    """List all names of one kind, those of fewstep and of installed packages; or list the kinds."""

    kind: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="KIND")] = None
    """recipes, methods, samplers, ...; by default all kinds are listed."""


def kinds() -> dict[str, str]:
    """The nouns of the registry by their plurals."""
    return {PLURALS.get(noun, f"{noun}s"): noun for noun in plugins.nouns()}


def main(argv: Sequence[str]) -> int:
    """Run `fewstep list`. Returns the exit code."""
    options = console.options(Options, "list", argv)
    rows = list(_rows(options.kind))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    return 0


def _rows(kind: str | None) -> Iterator[tuple[str, str]]:
    nouns = kinds()
    if kind is None:
        yield "recipes", f"{len(preset_names())} presets"
        yield from ((plural, ", ".join(plugins.names(noun))) for plural, noun in nouns.items())
    elif kind == "recipes":
        for name in preset_names():
            yield name, read_table(name).get("about", {}).get("title", "")
    elif kind in nouns or kind in nouns.values():
        noun = nouns.get(kind, kind)
        for name in plugins.names(noun):
            yield name, summary(plugins.registered_address(noun, name) or "")
    else:
        choices = ["recipes", *nouns]
        raise InputError(
            f"unknown kind {kind!r}{did_you_mean(kind, choices)} (choose one of "
            f"{', '.join(choices)})"
        )
