"""Base class of text encoders."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from fewstep.condition import Text, TextInput
from fewstep.tables import to_table


class TextEncoder(ABC):
    """Turns prompts into tokens. A subclass is a frozen dataclass, whose fields are the keys of a
    recipe's `[text]` table and are saved in weights files.

    Equal encoders give equal tokens for every prompt: fields must identify everything that the
    tokens depend on, such as a vocabulary, or the hash of a frozen network's weights.
    """

    noun: ClassVar[str] = "text-encoder"
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


def encoder_hash(encoder: TextEncoder) -> str:
    """SHA-256 of the settings of an encoder; equal encoders have equal ones."""
    return hashlib.sha256(json.dumps(to_table(encoder), sort_keys=True).encode()).hexdigest()
