"""Prompts of the command line: where they come from, and which words a run does not know."""

import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.cli import console
from fewstep.errors import InputError
from fewstep.formatting import listing, printable

if TYPE_CHECKING:
    from fewstep.generator import Generator

MAX_WORDS = 20
"""Number of unknown words that are listed."""
LONGEST_WORD = 40
"""Characters of an unknown word that are printed."""


def read_options(generator: "Generator", prompts: Sequence[str], file: str | None) -> list[str]:
    """The prompts of the options --prompt and --prompts; empty for neither.

    Raises: InputError for both, a generator without text, or a file without prompts.
    """
    if not prompts and file is None:
        return []
    if prompts and file is not None:
        raise InputError("--prompts FILE replaces --prompt TEXT: give one of the two")
    if generator.spec.text is None:
        option = "--prompt" if prompts else "--prompts"
        raise InputError(f"this generator takes no text: leave out {option}")
    if file is not None:
        from fewstep.conditions import read_prompts

        return read_prompts(Path(file))
    return [printable_text(prompt) for prompt in prompts]


def printable_text(argument: str) -> str:
    """An argument of the command line as text; bytes that are not UTF-8 become U+FFFD."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def print_unknown_words(generator: "Generator", prompts: Sequence[str]) -> None:
    """Say in one line on stderr which words of the prompts the text encoder does not know."""
    encoder = generator.spec.text
    if encoder is None or console.QUIET:
        return
    words = dict.fromkeys(word for prompt in prompts for word in encoder.unknown_words(prompt))
    # marks of punctuation are words too, but nobody misses their meaning
    short = [word if len(word) <= LONGEST_WORD else f"{word[:LONGEST_WORD]}…" for word in words]
    names = [printable(word) for word in short if word not in string.punctuation]
    if names:
        print(f"fewstep: unknown words: {listing(names, limit=MAX_WORDS)}", file=sys.stderr)
