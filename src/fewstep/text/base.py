"""Base class of text encoders."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, cast

from fewstep.condition import Text, TextInput
from fewstep.tables import to_table


class TextEncoder(ABC):
    """Turns prompts into tokens. A subclass is a frozen dataclass, whose fields are the keys of a
    recipe's `[text]` table and are saved in weights files.

    Equal encoders give equal tokens for every prompt: fields must identify everything that the
    tokens depend on, such as a vocabulary, or the hash of a frozen network's weights. A field that
    they do not depend on, such as the place of a file, is left out of comparisons.
    """

    noun: ClassVar[str] = "text-encoder"
    is_slow: ClassVar[bool] = False
    """Whether the encoded captions of a data set are worth a file in the cache."""
    length: Any
    """Largest number of tokens of a prompt; the rest of a longer one is cut off."""

    @property
    @abstractmethod
    def input(self) -> TextInput:
        """What a network receives for a prompt."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Text:
        """Tokens of prompts, one row each, on the CPU. A prompt without words has no tokens."""

    @abstractmethod
    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that the encoder has no meaning for, in order."""

    def fit(self, captions: Sequence[str]) -> "TextEncoder":
        """The encoder for a data set with these captions; by default the encoder itself.

        Raises: InputError for captions that it cannot learn from, or a missing file or package.
        """
        return self


def place_fields(encoder: TextEncoder) -> set[str]:
    """Names of the fields that tokens do not depend on, such as the place of a file."""
    return {field.name for field in fields(cast(Any, encoder)) if not field.compare}


def encoder_hash(encoder: TextEncoder) -> str:
    """SHA-256 of the settings of an encoder; equal encoders have equal ones."""
    places = place_fields(encoder)
    table = {key: value for key, value in to_table(encoder).items() if key not in places}
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
