"""`wordllama`: a frozen table of word vectors, in which words with like meanings are close.

The table is that of the package wordllama (Miller 2024, MIT licence): the token embeddings of large
language models, compressed by training on pairs of similar sentences. It is read from the installed
package, whose code is not imported.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from fewstep.condition import Text, TextInput
from fewstep.errors import InputError
from fewstep.files import tensor_digest
from fewstep.text.base import TextEncoder
from fewstep.text.words import LONGEST_PROMPT, normalize, split_words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TABLE = Path("weights", "l2_supercat_256.safetensors")
TOKENIZER = Path("tokenizers", "l2_supercat_tokenizer_config.json")
DIMENSIONS = 256
"""Numbers of a vector in the table."""
START = "\u2581"
"""A space, as a token."""


class Vectors(NamedTuple):
    """The contents of the package."""

    table: Float[Tensor, "tokens 256"]
    tokenizer: "Tokenizer"
    sha256: str
    """Hash of both."""


@dataclass(frozen=True)
class WordLlama(TextEncoder):
    """Word vectors of the package wordllama: `pip install 'fewstep[text]'`."""

    length: Annotated[int, Ge(1), Le(1024)] = 24
    """Largest number of tokens of a prompt; the rest of a longer one is cut off."""
    dimension: Literal[64, 128, 256] = 256
    """Numbers of a vector. The table is made so that its first 64 or 128 can do without the
    others."""
    sha256: str = ""
    """Hash of the table and its tokenizer. Training fills it in: leave this empty."""

    @property
    def input(self) -> TextInput:
        return TextInput(self.length, features=self.dimension)

    def fit(self, captions: Sequence[str]) -> "WordLlama":
        """The encoder with the hash of the installed table.

        Raises: InputError without the package, or for a `sha256` that is not that of its table.
        """
        return replace(self, sha256=self._vectors().sha256)

    def encode(self, prompts: Sequence[str]) -> Text:
        """Vectors of prompts in float16, the precision of the table.

        Raises: InputError as `fit`.
        """
        vectors = self._vectors()
        tokens = torch.zeros(len(prompts), self.length, self.dimension, dtype=vectors.table.dtype)
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            words = normalize(prompt[:LONGEST_PROMPT]).split()
            encoding = vectors.tokenizer.encode(" ".join(words), add_special_tokens=False)
            ids = encoding.ids[: self.length]
            tokens[row, : len(ids)] = vectors.table[ids, : self.dimension]
            mask[row, : len(ids)] = True
        return Text(tokens, mask)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt of which the table has single bytes only.

        Raises: InputError as `fit`.
        """
        tokenizer = self._vectors().tokenizer
        words = split_words(prompt[:LONGEST_PROMPT])
        return [word for word in words if _is_bytes(tokenizer, word)]

    def _vectors(self) -> Vectors:
        vectors = read_package(find_package())
        if self.sha256 not in ("", vectors.sha256):
            raise InputError(
                f"the network was trained with word vectors of SHA-256 {self.sha256[:12]}, and the "
                f"installed package wordllama has {vectors.sha256[:12]}: install the version that "
                "it was trained with"
            )
        return vectors


def find_package() -> Path:
    """The folder of the installed package wordllama, which is not imported.

    Raises: InputError if it is not installed.
    """
    spec = importlib.util.find_spec("wordllama")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            'the text encoder "wordllama" needs the package of that name: pip install '
            "'fewstep[text]'"
        )
    return Path(spec.submodule_search_locations[0])


@cache
def read_package(folder: Path) -> Vectors:
    """The table and the tokenizer in the folder of the package.

    Raises: InputError for a folder that lacks them, or without the package tokenizers.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise InputError(
            'the text encoder "wordllama" needs the package tokenizers: pip install '
            "'fewstep[text]'"
        ) from None
    try:
        rules = (folder / TOKENIZER).read_text(encoding="utf-8")
        with safe_open(folder / TABLE, framework="pt") as file:
            # a copy, because a mapped file that changes ends the process
            table = file.get_tensor("embedding.weight").clone()
        tokenizer = Tokenizer.from_str(rules)
        tokens, size = tokenizer.get_vocab_size(), tuple(table.shape)
        if len(size) != 2 or size[0] < tokens or size[1] < DIMENSIONS:
            raise InputError(f"{tokens} tokens, and vectors of shape {size}")
    except Exception as error:  # tokenizers raises no class of its own
        reason = " ".join(str(error).split())
        raise InputError(
            f"the installed package wordllama has no table of word vectors that can be read "
            f"({reason}): install wordllama 0.4 again"
        ) from error
    return Vectors(table, tokenizer, tensor_digest({"table": table}, header=rules))


def _is_bytes(tokenizer: "Tokenizer", word: str) -> bool:
    """Whether the tokens of a word are single bytes, such as "<0xE7>", or none."""
    tokens = tokenizer.encode(word, add_special_tokens=False).tokens
    return all(token.startswith("<0x") for token in tokens if token != START)
