"""`tokenizer.json`: what a program without fewstep needs to turn prompts into tokens."""

import json
from pathlib import Path
from typing import Any

from fewstep import plugins
from fewstep.errors import InputError
from fewstep.sample_spec import SampleSpec
from fewstep.text.learned import LONGEST_PROMPT, START, LearnedText
from fewstep.text.words import normalized_characters

TOKENIZER = "tokenizer.json"


def check_exportable(spec: SampleSpec) -> None:
    """Raise InputError for a text encoder that only fewstep has."""
    if spec.text is not None and not isinstance(spec.text, LearnedText):
        name = plugins.name_of("text-encoder", type(spec.text))
        raise InputError(
            f'an exported program has no text encoder "{name}": only models of the encoder '
            '"learned" can be exported'
        )


def tokenizer_table(encoder: LearnedText) -> dict[str, Any]:
    """The tables of an encoder as JSON values; docs/export.md lists the rules that use them."""
    return {
        "length": encoder.length,
        "longest_prompt": LONGEST_PROMPT,
        "normalized": normalized_characters(),
        "start": START,
        "pieces": [piece for piece in encoder.pieces.split(" ") if piece],
        "words": [word for word in encoder.words.split(" ") if word],
        "null_prompt": {"tokens": [0] * encoder.length, "token_mask": [False] * encoder.length},
    }


def write_tokenizer(spec: SampleSpec, folder: Path) -> None:
    """Write `tokenizer.json` if the generator has text.

    Raises: InputError as `check_exportable`.
    """
    check_exportable(spec)
    if isinstance(spec.text, LearnedText):
        table = json.dumps(tokenizer_table(spec.text), ensure_ascii=False, indent=1)
        (folder / TOKENIZER).write_text(table + "\n", encoding="utf-8")
