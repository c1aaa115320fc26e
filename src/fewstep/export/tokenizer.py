"""`tokenizer.json`: what a program without fewstep needs to turn prompts into tokens."""

import json
from pathlib import Path
from typing import Any

from fewstep import plugins
from fewstep.errors import InputError
from fewstep.sample_spec import SampleSpec
from fewstep.text.learned import START, LearnedText
from fewstep.text.words import LONGEST_PROMPT, normalized_characters

TOKENIZER = "tokenizer.json"


def check_exportable(spec: SampleSpec) -> None:
    """Raise InputError for a text encoder that only fewstep has."""
    if spec.text is not None and not isinstance(spec.text, LearnedText):
        name = plugins.name_of("text-encoder", type(spec.text))
        raise InputError(
            f'an exported program has no text encoder "{name}": only models of the encoder '
            '"learned" can be exported'
        )


def tokenizer_table(spec: SampleSpec) -> dict[str, Any] | None:
    """The contents of `tokenizer.json`; docs/export.md lists the rules that use them.

    None for a generator without text. Raises: InputError as `check_exportable`.
    """
    check_exportable(spec)
    encoder = spec.text
    if not isinstance(encoder, LearnedText):
        return None
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
    table = tokenizer_table(spec)
    if table is not None:
        text = json.dumps(table, ensure_ascii=False, indent=1)
        (folder / TOKENIZER).write_text(text + "\n", encoding="utf-8")
