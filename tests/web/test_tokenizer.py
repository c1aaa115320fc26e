"""The tokens and unknown words of tokenizer.js are those of Python."""

import json
import random

import pytest

from fewstep.export.tokenizer import tokenizer_table
from fewstep.sample_spec import SampleSpec
from fewstep.text.learned import LearnedText
from fewstep.text.words import normalize, split_words
from javascript import run_module

PROGRAM = """
import { readFileSync } from 'node:fs';
import { Tokenizer } from 'WEB/tokenizer.js';
const { table, prompts } = JSON.parse(readFileSync(0, 'utf8'));
const tokenizer = new Tokenizer(table);
console.log(JSON.stringify(prompts.map((prompt) => EXPRESSION)));
"""
CAPTIONS = [
    "a smiling cat, with heart-eyes", "the person's red hair", "ΟΔΥΣΣΕΥΣ στο σπίτι",
    "İstanbul ışık",
    "猫が笑う", "고양이", "Crème brûlée №5 ﬁn", "кошка", "naïve ▁ start", "👩‍🚀 in space",
]  # fmt: skip
ENCODER = LearnedText(length=24, vocabulary=200).fit(CAPTIONS * 3)
PARTS = [
    "cat", "Cat's", "SMILING", " ", "  ", "\t", "\n", "\x00", "\x7f", "\x85", "\xa0",
    "\u2028", "!", "-_-", "ﬁ",
    "Ｆｕｌｌ　ｗｉｄｔｈ", "Σ", "ΑΣ", "ΑΣ.Β", "ς", "ϲ", "ϴ", "İ", "I", "ı", "i̇", "ß",
    "ẞ", "ǅ", "e\u0301", "\u0301",
    "\u0323\u0307", "\u0307\u0323", "가", "각", "각", "한국어", "か゛", "が", "ｶﾞ", "㌔",
    "㈱", "豈", "𝓬𝓪𝓽", "①", "½",
    "😀", "👩🏽‍🚀", "🇩🇪", "\ud83d", "\ude00", "▁", "▁▁", "▁cat", "क़", "ก็", "لا", "ﷺ",
    "בְּ", "שּׁ", "Ω", "K",
    "\ua7cb", "\U00010d50", "\U0001e030", "\U0001ccd6", "\u0897", "\u1acf",
    "\U00016d67\U00016d67",
    "\U0010ffff", "\ufffe", "\ufeff", "中文", "Ǆ", "ŉ", "ᾳ", "ᾼ", "ΐ", "͏", "\u200d",
    "\u00ad", "…", "™", "10,000",
]  # fmt: skip


def javascript(expression, prompts, encoder=ENCODER):
    table = tokenizer_table(SampleSpec((1, 8, 8), text=encoder))
    stdin = json.dumps({"table": table, "prompts": prompts}).encode()
    return json.loads(run_module(PROGRAM.replace("EXPRESSION", expression), stdin=stdin))


def random_prompt(chance):
    """Parts that are difficult, or characters of any kind."""
    kinds = [
        lambda: chance.choice(PARTS),
        lambda: chance.choice(CAPTIONS),
        lambda: chr(chance.randrange(0x250)),
        lambda: chr(chance.randrange(0x110000)),
        lambda: " ",
    ]
    return "".join(chance.choice(kinds)() for _ in range(chance.randrange(1, 16)))


def test_a_thousand_strings_have_the_tokens_of_python():
    chance = random.Random(0)
    prompts = [*PARTS, "", "x" * 10_000, "🐈" * 9_999 + "cat", "猫 " * 5000]
    prompts += [random_prompt(chance) for _ in range(1000 - len(prompts))]
    # surrogates next to each other are one character in JavaScript, and in JSON
    prompts = [json.loads(json.dumps(prompt)) for prompt in prompts]
    found = javascript("[tokenizer.tokenIds(prompt), tokenizer.unknownWords(prompt)]", prompts)
    for prompt, (ids, words) in zip(prompts, found, strict=True):
        assert ids == ENCODER.token_ids(prompt), ascii(prompt)
        assert words == ENCODER.unknown_words(prompt), ascii(prompt)


def test_a_prompt_is_cut_to_the_length_and_filled_with_zeros():
    prompts = ["", "a smiling cat", "a cat " * 20]
    found = javascript("tokenizer.encode(prompt)", prompts)
    expected = ENCODER.encode(prompts)
    assert [row["tokens"] for row in found] == expected.tokens.tolist()
    assert [row["mask"] for row in found] == expected.mask.int().tolist()


@pytest.mark.slow
def test_every_character_has_the_tokens_of_python():
    """Alone, after a letter and before a mark, in each version of Unicode that both have."""
    prompts = [f"{chr(i)} a{chr(i)} {chr(i)}\u0301" for i in range(0x110000)]
    for first in range(0, len(prompts), 1 << 17):
        part = prompts[first : first + (1 << 17)]
        found = javascript("tokenizer.split(prompt)", part)
        for prompt, words in zip(part, found, strict=True):
            assert words == split_words(prompt), ascii(prompt)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A Cat's  hat!", ["a", "cat", "'", "s", "hat", "!"]),
        ("Ｆｕｌｌ　ｗｉｄｔｈ\xa0ﬁn", ["full", "width", "fin"]),
        ("ΟΔΥΣΣΕΥΣ οδυσσευς", ["οδυσσευσ"] * 2),
        ("e\u0301 É", ["é"] * 2),
        ("İ", ["i̇"]),
        ("𝓬𝓪𝓽 ①", ["cat", "1"]),
        ("👩‍🚀-猫", ["👩‍🚀", "-", "猫"]),
        ("\ua7cb", ["\ua7cb"]),  # a capital since Unicode 16
        (" \t\n", []),
    ],
)
def test_words(text, expected):
    assert split_words(text) == expected
    assert normalize(normalize(text)) == normalize(text)
