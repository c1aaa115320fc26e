"""`fewstep list [recipes|methods|samplers|...]`: everything that is selected by name."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from fewstep import plugins
from fewstep.cli import console
from fewstep.errors import InputError, did_you_mean
from fewstep.formatting import quantity
from fewstep.models import model_addresses
from fewstep.schema import preset_names, read_table, summary

PLURALS = {
    "process": "processes",
    "density": "densities",
    **{noun: noun for noun in ("data", "levels", "models")},
}
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
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        print(f"{name:<{width}}  {text}".rstrip())
    return 0


def _rows(kind: str | None) -> Iterator[tuple[str, str]]:
    nouns = kinds()
    if kind is None:
        yield "recipes", f"{len(preset_names())} presets"
        for plural, noun in nouns.items():
            names = model_addresses() if noun == "models" else plugins.names(noun)
            yield plural, ", ".join(names)
    elif kind == "recipes":
        for name in preset_names():
            yield name, read_table(name).get("about", {}).get("title", "")
    elif kind == "models":
        yield from _models()
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


def _models() -> Iterator[tuple[str, str]]:
    """Each model with its recipe's title, its scores, its licence and that of its data."""
    from fewstep import runs
    from fewstep.data.attributions import ATTRIBUTIONS
    from fewstep.scores import score_from

    for address in model_addresses():
        note = runs.describe(address)
        recipe = note.get("recipe") or {}
        attribution = ATTRIBUTIONS.get(recipe.get("data", {}).get("name"), "")
        scores = map(score_from, note.get("scores", ()))
        texts = [
            recipe.get("about", {}).get("title", ""),
            *(f"{s.distance} {s.frechet:.2f} in {quantity(s.steps, 'step')}" for s in scores),
            note.get("license", ""),
            f"data: {attribution}" if attribution else "",
        ]
        yield address, "; ".join(filter(None, texts))
