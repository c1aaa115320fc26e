"""CLIP and T5 against transformers itself, and the file of encoded captions."""

import shutil
import tomllib
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from fewstep.cli import main
from fewstep.download import cache
from fewstep.errors import InputError
from fewstep.recipe import parse
from fewstep.runner import run_recipe
from fewstep.tables import from_table, to_table
from fewstep.text.base import TextEncoder, encoder_hash
from fewstep.text.captions import CaptionTable
from fewstep.text.transformers import Transformers, read_model
from prompted import RECIPE, captioned_folder, prompted_run

PROMPTS = ["a red cat", "", "a blue dog and a red dog and a cat", "cat 猫", " ", "a " * 6000]
WORDS = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "cat", "dog", "and", "猫"]


def save_tokenizer(folder, words, pad_token="<pad>"):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad_token, eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def save_clip(folder, seed=0, words=WORDS[:9]):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=12, eos_token_id=1, pad_token_id=0,
        bos_token_id=1,
    )  # fmt: skip
    CLIPTextModel(config).save_pretrained(folder)
    save_tokenizer(folder, words)
    return folder


def save_t5(folder):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=20, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.5
    )
    T5EncoderModel(config).save_pretrained(folder)
    save_tokenizer(folder, WORDS[:9])
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return save_t5(tmp_path_factory.mktemp("t5"))


def encoder_of(folder, **settings):
    return Transformers(model=str(folder), length=8, **settings).fit([])


@pytest.mark.parametrize(("kind", "width"), [("clip", 16), ("t5", 24)])
def test_tokens_are_the_last_hidden_states_of_transformers(kind, width, request):
    from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

    folder = request.getfixturevalue(kind)
    encoder = encoder_of(folder)
    assert encoder.input.features == width
    text = encoder.encode(PROMPTS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = {"clip": CLIPTextModel, "t5": T5EncoderModel}[kind].from_pretrained(folder).eval()
    for row, prompt in enumerate(PROMPTS):
        if not prompt.strip():
            assert not text.mask[row].any() and not text.tokens[row].any()
            continue
        inputs = tokenizer(prompt, truncation=True, max_length=8, return_tensors="pt")
        with torch.no_grad():
            states = network(inputs.input_ids, inputs.attention_mask).last_hidden_state[0]
        assert text.mask[row].sum() == len(states) <= 8
        torch.testing.assert_close(text.tokens[row][text.mask[row]], states, rtol=1e-5, atol=1e-5)
    assert not text.tokens.requires_grad


def test_words_without_tokens_are_unknown(clip):
    assert encoder_of(clip).unknown_words("A red 猫 and a cat") == ["猫"]


def test_an_encoder_is_its_weights_wherever_they_are(clip, tmp_path):
    encoder = encoder_of(clip)
    moved = encoder_of(shutil.copytree(clip, tmp_path / "moved"))
    assert moved == encoder and encoder_hash(moved) == encoder_hash(encoder)
    assert from_table(TextEncoder, to_table(encoder), "text") == encoder
    other = save_clip(tmp_path / "other", seed=1)
    words = save_clip(tmp_path / "words", words=WORDS[:8] + WORDS[9:])
    for folder in (other, words):
        assert encoder_of(folder) != encoder
        with pytest.raises(InputError, match=r"trained with a text encoder of SHA-256 \w{12}, and"):
            replace(encoder, model=str(folder)).encode(["a cat"])


def test_captions_are_encoded_once(t5, home, monkeypatch):
    calls = []
    encode = Transformers.encode

    def count(self, prompts):
        calls.append(len(prompts))
        return encode(self, prompts)

    monkeypatch.delenv("FEWSTEP_CACHE")
    monkeypatch.setattr(Transformers, "encode", count)
    captions, encoder = [["a cat", "a dog"], [], ["a cat"]], encoder_of(t5)
    first = CaptionTable(encoder, captions)
    again = CaptionTable(encoder, captions)
    assert calls == [3] and len(list((cache() / "captions").iterdir())) == 1
    assert torch.equal(first.texts.tokens, again.texts.tokens)
    assert torch.equal(again.texts.tokens, encode(encoder, ["a cat", "a dog", ""]).tokens)
    (file,) = (cache() / "captions").iterdir()
    content = file.read_bytes()
    file.unlink()  # `first` has it in memory
    file.write_bytes(content[:-1] + b"?")
    assert torch.equal(CaptionTable(encoder, captions).texts.mask, first.texts.mask)
    CaptionTable(replace(encoder, length=4), captions)
    CaptionTable(encoder, [["a dog"]])
    CaptionTable(encoder, captions)
    assert calls == [3, 3, 3, 1]


def test_captions_without_a_place_for_a_file(t5, home, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", "/dev/null/cache")
    assert CaptionTable(encoder_of(t5), [["a cat"]]).texts.mask.sum() == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": ""}, "needs text.model: the folder of a CLIP or T5"),
        ({"model": "no/such/folder"}, "there is no folder no/such/folder; for one on the hub"),
        ({"model": "nobody/nothing"}, r"encoder nobody/nothing cannot be read \(.*\): text.model"),
        ({"length": 13}, "text.length is 13, but .* reads at most 12 tokens: set text.length=12"),
    ],
)
def test_impossible_settings_are_refused(settings, message, clip, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message) as refused:
        Transformers(**{"model": str(clip), "length": 8} | settings).fit([])
    assert "\n" not in str(refused.value)


def test_other_networks_are_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="a network of the type bert: use a CLIP or a T5"):
        Transformers(model=str(tmp_path)).fit([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad_token": None}, "has no token for padding"),
        ({"words": [*WORDS, *map(str, range(12))]}, "has 22 tokens, and its network 20"),
    ],
)
def test_tokenizers_that_do_not_fit_are_refused(tmp_path, settings, message):
    save_clip(tmp_path)
    save_tokenizer(tmp_path, **{"words": WORDS[:9]} | settings)
    with pytest.raises(InputError, match=message):
        Transformers(model=str(tmp_path), length=8).fit([])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_training_resumes_after_its_encoder_has_moved(clip, tmp_path, home):
    table = tomllib.loads(RECIPE.format(images=captioned_folder(tmp_path / "images")))
    table["fit"]["save_every"] = 1
    for place, until in (("here", 1), ("there", 2)):
        folder = shutil.copytree(clip, tmp_path / place)
        table["text"] = {"name": "transformers", "model": str(folder), "length": 8}
        with closing(run_recipe(parse(table), tmp_path / "run")) as steps:
            assert [next(steps).step] == [until]
    save_clip(folder, seed=1)
    read_model.cache_clear()
    with pytest.raises(InputError, match="was trained with another text than this recipe"):
        next(run_recipe(parse(table), tmp_path / "run", extend=True))


def test_a_run_without_its_encoder_says_where_it_was(clip, tmp_path, capsys):
    folder = shutil.copytree(clip, tmp_path / "encoder")
    images = captioned_folder(tmp_path / "images")
    run = prompted_run(tmp_path / "run.safetensors", images, encoder=encoder_of(folder))
    words = ["sample", run, "-n", "2", "--steps", "1", "-o", str(tmp_path / "out.png")]
    assert main(words) == 0
    capsys.readouterr()
    shutil.rmtree(folder)
    read_model.cache_clear()
    assert main(words) == 2
    error = capsys.readouterr().err
    assert (
        f"text encoder cannot be read: there is no folder {folder}" in error
        and error.count("\n") == 1
    )
