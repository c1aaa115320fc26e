"""`learned`: pieces of words from the captions; the network learns their meaning itself.

The pieces are those of byte pair encoding, Sennrich et al. 2016, arXiv:1508.07909. A word is
divided greedily into the longest pieces from its start. Characters that no caption has become
bytes, so that every prompt has tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import torch
from annotated_types import Ge, Le

from fewstep.condition import Text, TextInput
from fewstep.errors import InputError
from fewstep.text.base import TextEncoder
from fewstep.text.words import LONGEST_PROMPT, is_word, split_words

START = "\u2581"
"""Marks a piece that starts a word, as in SentencePiece."""
BYTES = 256
"""Number of ids of single bytes, which precede those of the pieces."""


@dataclass(frozen=True)
class LearnedText(TextEncoder):
    """Pieces of words, made from the captions of the training set."""

    length: Annotated[int, Ge(1), Le(1024)] = 24
    """Largest number of tokens of a prompt; the rest of a longer one is cut off."""
    vocabulary: Annotated[int, Ge(1), Le(65_536)] = 1024
    """Number of pieces of words to make from the captions."""
    pieces: str = ""
    """The pieces, separated by spaces. Training makes them: leave this empty."""
    words: str = ""
    """The words of the captions, separated by spaces. Training lists them: leave this empty."""

    @property
    def input(self) -> TextInput:
        return TextInput(self.length, vocabulary=BYTES + len(self._ids))

    def fit(self, captions: Sequence[str]) -> "LearnedText":
        """Make the pieces from captions. Equal captions in any order give equal pieces.

        Raises: InputError if there are no captions with words.
        """
        if self.pieces:
            return self
        counts = Counter(word for caption in captions for word in split_words(caption))
        if not counts:
            raise InputError(
                'the text encoder "learned" makes its pieces of words from captions, and the data '
                "have none: choose a set with captions"
            )
        pieces = " ".join(byte_pairs(counts, self.vocabulary))
        return replace(self, pieces=pieces, words=" ".join(sorted(counts)))

    def encode(self, prompts: Sequence[str]) -> Text:
        tokens = torch.zeros(len(prompts), self.length, dtype=torch.int64)
        mask = torch.zeros(len(prompts), self.length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            ids = self.token_ids(prompt)[: self.length]
            tokens[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            mask[row, : len(ids)] = True
        return Text(tokens, mask)

    def token_ids(self, prompt: str) -> list[int]:
        """Ids of all tokens of a prompt, of which `encode` returns the first `length`."""
        words = split_words(prompt[:LONGEST_PROMPT])
        return [token for word in words for token in self._word_ids(word)]

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that no caption has, without punctuation marks."""
        words = split_words(prompt[:LONGEST_PROMPT])
        return [word for word in words if word not in self._caption_words and is_word(word)]

    def _word_ids(self, word: str) -> Iterator[int]:
        rest = START + word
        while rest not in ("", START):
            size = min(len(rest), self._longest)
            while size and rest[:size] not in self._ids:
                size -= 1
            if size:
                yield self._ids[rest[:size]]
                rest = rest[size:]
                continue
            rest = rest.removeprefix(START)  # the first character is in no piece
            yield from rest[0].encode("utf-8", "replace")
            rest = rest[1:]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {piece: BYTES + i for i, piece in enumerate(filter(None, self.pieces.split(" ")))}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._ids), default=0)

    @cached_property
    def _caption_words(self) -> frozenset[str]:
        return frozenset(self.words.split(" "))


def byte_pairs(counts: dict[str, int], size: int) -> list[str]:
    """At most `size` pieces of words with these counts, in an order that depends on them alone.

    Single characters come first, the most frequent before others. Then the most frequent pair of
    neighbouring pieces becomes a piece, again and again, until no pair occurs twice.
    """
    words = {word: [START + word[0], *word[1:]] for word in sorted(counts)}
    single: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    places: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for word, parts in words.items():
        for part in parts:
            single[part] += counts[word]
        _count_pairs(word, parts, counts[word], pairs, places)
    pieces = sorted(single, key=lambda part: (-single[part], part))[:size]
    while len(pieces) < size and pairs:
        pair = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[pair] < 2:
            break
        for word in sorted(places[pair]):
            _count_pairs(word, words[word], -counts[word], pairs, places)
            words[word] = _merge(words[word], pair)
            _count_pairs(word, words[word], counts[word], pairs, places)
        if "".join(pair) not in pieces:
            pieces.append("".join(pair))
    return pieces


def _count_pairs(
    word: str,
    parts: list[str],
    count: int,
    pairs: Counter[tuple[str, str]],
    places: defaultdict[tuple[str, str], set[str]],
) -> None:
    """Add `count` to each pair of neighbours in a word; a negative one takes the word out."""
    for pair in zip(parts, parts[1:], strict=False):
        pairs[pair] += count
        if pairs[pair] <= 0:
            del pairs[pair]
        if count > 0:
            places[pair].add(word)
        else:
            places[pair].discard(word)


def _merge(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """The parts with each occurrence of `pair` joined, from the left."""
    result: list[str] = []
    for part in parts:
        if result and (result[-1], part) == pair:
            result[-1] += part
        else:
            result.append(part)
    return result
