"""Pieces of words against the paper's example, and prompts of every kind."""

from collections import Counter

import pytest
import torch

from fewstep import data
from fewstep.errors import InputError
from fewstep.tables import from_table, to_table
from fewstep.text.base import TextEncoder
from fewstep.text.learned import BYTES, LearnedText, byte_pairs
from fewstep.text.words import split_words

CAPTIONS = ["cat face", "grinning cat", "dog face", "man: dark skin tone", "woman: dark skin tone"]
ENCODER = LearnedText(length=6, vocabulary=64).fit(CAPTIONS)


def pieces_of(encoder, prompt):
    pieces = encoder.pieces.split(" ")
    return [pieces[i - BYTES] if i >= BYTES else i for i in encoder.token_ids(prompt)]


def test_pairs_join_as_in_the_papers_example():
    """Sennrich et al. 2016, algorithm 1: e+s, es+t, then l+ow; here a word starts with a mark."""
    counts = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    pieces = byte_pairs(counts, 1000)
    single = Counter("".join(word[1:] * count for word, count in counts.items()))
    first = [piece for piece in pieces if len(piece.removeprefix("▁")) == 1]
    assert set(first) == set(single) | {"▁l", "▁n", "▁w"}
    assert pieces[len(first) : len(first) + 4] == ["es", "est", "ow", "▁low"]
    assert pieces[-1] in {"▁lower", "▁widest"} and "▁newest" in pieces


def test_the_number_of_pieces_is_limited():
    counts = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    most = byte_pairs(counts, 1000)
    for size in (1, 5, 12):
        assert byte_pairs(counts, size) == most[:size]


def test_pieces_do_not_depend_on_the_order_of_captions():
    assert LearnedText(length=6, vocabulary=64).fit(CAPTIONS[::-1]) == ENCODER
    assert ENCODER.fit(["something else"]) == ENCODER  # it has its pieces already


def test_an_encoder_survives_its_table():
    table = to_table(ENCODER)
    assert table["name"] == "learned" and from_table(TextEncoder, table, "text") == ENCODER


def test_words_are_read_from_their_start_by_the_longest_piece():
    encoder = LearnedText(pieces="▁c ▁ca ca t at ▁", words="cat")
    assert pieces_of(encoder, "CAT") == ["▁ca", "t"]
    assert pieces_of(encoder, "ccat") == ["▁c", "ca", "t"]
    assert pieces_of(encoder, "tat") == ["▁", "t", "at"]


def test_characters_in_no_caption_become_bytes():
    assert pieces_of(ENCODER, "猫") == list("猫".encode())
    assert pieces_of(ENCODER, "😀") == list("😀".encode())
    assert pieces_of(ENCODER, "\ud800") == list(b"?")  # half of a pair of UTF-16 code units
    assert pieces_of(ENCODER, "cat猫")[-3:] == list("猫".encode())


@pytest.mark.parametrize("prompt", ["", "   ", "\n\t"])
def test_a_prompt_without_words_has_no_tokens(prompt):
    text = ENCODER.encode([prompt, "cat"])
    assert text.mask.tolist()[0] == [False] * 6 and text.mask[1].any()


def test_a_long_prompt_is_cut_off():
    long = "cat " * 2500
    text = ENCODER.encode([long, " ".join(["cat"] * 6)])
    assert text.mask.all() and torch.equal(text.tokens[0], text.tokens[1])
    assert ENCODER.input.vocabulary > int(text.tokens.max())


def test_words_that_no_caption_has_are_listed():
    assert ENCODER.unknown_words("A smiling Cat, dark!") == ["a", "smiling"]
    assert ENCODER.unknown_words("cat face") == []


def test_captions_without_words_are_refused():
    for captions in ([], ["", " "]):
        with pytest.raises(InputError, match="the data have none"):
            LearnedText().fit(captions)


@pytest.mark.parametrize(
    ("text", "words"),
    {
        "Man: medium-dark": ["man", ":", "medium", "-", "dark"],
        "ＣＡＴ ﬁsh": ["cat", "fish"],  # full width, and a ligature
        "café CAFÉ": ["café", "café"],
        "naïve\u00a0x\u3000y": ["naïve", "x", "y"],
        "ΟΔΟΣ οδος": ["οδοσ", "οδοσ"],
        "1st, 2nd": ["1st", ",", "2nd"],
        "it's": ["it", "'", "s"],
        "👍🏽 ok": ["👍🏽", "ok"],
    }.items(),
)
def test_words(text, words):
    assert split_words(text) == words


def test_captions_of_emoji_have_few_tokens():
    captions = [text for each in data.load("emoji").captions for text in each]
    encoder = LearnedText().fit(captions)
    counts = [len(encoder.token_ids(text)) for text in captions]
    assert max(counts) <= encoder.length and sum(counts) / len(counts) < 7
    assert not any(encoder.unknown_words(text) for text in captions)
