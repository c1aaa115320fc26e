"""Word vectors against the package that they come from, and what happens without it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.tables import from_table, to_table
from fewstep.text import wordllama
from fewstep.text.base import TextEncoder
from fewstep.text.wordllama import WordLlama
from prompted import captioned_folder, prompted_run

PROMPTS = ["a smiling cat", "", "man: dark skin tone", "猫 😀", "x" * 10_001, "one  two\nthree"]
ENCODER = WordLlama(length=8).fit([])


@pytest.fixture
def other_package(tmp_path, monkeypatch):
    """Puts a changed copy of the package in its place; returns the copy's table."""

    def install(change):
        folder = tmp_path / "site" / "wordllama"
        shutil.copytree(
            wordllama.find_package(), folder, ignore=shutil.ignore_patterns("*.py", "*.so")
        )
        table = load_file(folder / wordllama.TABLE)["embedding.weight"].clone()
        change(table)
        save_file({"embedding.weight": table}, folder / wordllama.TABLE)
        (folder / "__init__.py").write_text("raise AssertionError('imported')")
        monkeypatch.syspath_prepend(folder.parent)
        assert wordllama.find_package() == folder
        return folder / wordllama.TABLE

    return install


def means(encoder, prompts):
    text = encoder.encode(prompts)
    rows = zip(text.tokens, text.mask, strict=True)
    return torch.stack([tokens[mask].float().mean(0) for tokens, mask in rows])


def test_the_mean_of_a_prompts_vectors_is_that_of_the_package():
    """`WordLlamaInference.embed` pools them; it does not lower the case."""
    code = """
import json, sys
from safetensors.numpy import load_file
from tokenizers import Tokenizer
from wordllama import WordLlamaInference
table, tokenizer = load_file(sys.argv[1])["embedding.weight"], Tokenizer.from_file(sys.argv[2])
package = WordLlamaInference(table, tokenizer)
print(json.dumps(package.embed(["a smiling cat", "dog face"], return_np=False)))
"""
    files = [wordllama.find_package() / each for each in (wordllama.TABLE, wordllama.TOKENIZER)]
    argv = [sys.executable, "-c", code, *map(str, files)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    theirs = torch.tensor(json.loads(done.stdout))
    torch.testing.assert_close(means(ENCODER, ["A smiling  CAT", "dog face"]), theirs)
    assert "wordllama" not in sys.modules


def test_tokens_do_not_depend_on_the_other_prompts():
    together = ENCODER.encode(PROMPTS)
    assert together.tokens.shape == (len(PROMPTS), 8, 256) and not together.mask[1].any()
    assert together.mask[4].all()  # cut off
    for row, prompt in enumerate(PROMPTS):
        alone = ENCODER.encode([prompt])
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert torch.equal(alone.mask[0], together.mask[row])
        assert not together.tokens[row][~together.mask[row]].any()


def test_shorter_vectors_are_the_first_numbers():
    short = replace(ENCODER, dimension=64)
    assert short.input.features == 64
    full = ENCODER.encode(PROMPTS).tokens
    assert torch.equal(short.encode(PROMPTS).tokens, full[..., :64])


@pytest.mark.parametrize(
    ("word", "like", "unlike"),
    [("kitten", "cat", "car"), ("grinning", "smiling", "flag"), ("automobile", "car", "cat")],
)
def test_vectors_of_synonyms_are_close(word, like, unlike):
    vector, *others = means(ENCODER, [word, like, unlike])
    near, far = (torch.cosine_similarity(vector, other, dim=0) for other in others)
    assert near > far + 0.1


def test_words_without_vectors_are_unknown():
    assert ENCODER.unknown_words("a smiling 猫 and 😀, kitten <3") == ["猫", "😀"]
    assert ENCODER.unknown_words("") == []


def test_an_encoder_survives_its_table_and_names_its_vectors():
    table = json.loads(json.dumps(to_table(ENCODER)))
    assert from_table(TextEncoder, table, "text") == ENCODER
    assert len(ENCODER.sha256) == 64 and ENCODER.fit(["more"]) == ENCODER


def test_other_word_vectors_are_refused(other_package):
    other_package(lambda table: table[5000, 0].add_(1))
    with pytest.raises(InputError, match=r"trained with word vectors of SHA-256 \w{12}, and the"):
        ENCODER.encode(["a cat"])
    changed = WordLlama(length=8).fit([])  # its code is not imported
    assert changed.sha256 != ENCODER.sha256 and changed != ENCODER
    with pytest.raises(InputError, match="install the version"):
        ENCODER.fit([])


@pytest.mark.parametrize("damage", ["table", "shape", "tokenizer", "text"])
def test_a_damaged_package_is_said_in_one_line(other_package, damage):
    table = other_package(lambda table: None)
    rules = table.parents[1] / wordllama.TOKENIZER
    if damage == "table":
        table.write_bytes(b"damaged")
    elif damage == "shape":
        save_file({"embedding.weight": torch.zeros(32_000, 64)}, table)
    else:
        rules.write_bytes(b"{}" if damage == "tokenizer" else b"\xff")
    with pytest.raises(InputError, match="no table of word vectors that can be read") as refused:
        WordLlama().fit([])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("words", [["--prompt", "a cat"], [], ["--prompt", ""]])
def test_a_run_without_its_package_says_what_to_install(words, tmp_path, capsys, monkeypatch):
    images = captioned_folder(tmp_path / "images")
    run = prompted_run(tmp_path / "run.safetensors", images, encoder=ENCODER)
    out = str(tmp_path / "out.png")
    assert main(["sample", run, *words, "-n", "2", "--steps", "1", "-o", out]) == 0
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "wordllama", None)  # as if not installed
    assert main(["sample", run, *words, "-n", "2", "--steps", "1", "-o", out]) == 2
    error = capsys.readouterr().err
    assert "pip install 'fewstep[text]'" in error and error.count("\n") == 1


def test_weights_have_no_word_vectors(tmp_path):
    images = captioned_folder(tmp_path / "images")
    run = prompted_run(tmp_path / "run.safetensors", images, encoder=ENCODER)
    values = sum(value.numel() for value in load_file(run).values())
    assert values < 100_000 < 32_000 * 256
