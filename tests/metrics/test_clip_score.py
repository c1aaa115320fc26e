"""The CLIP score against transformers itself, with a tiny CLIP that is made on the spot."""

import json

import pytest
import torch
from torch.nn import functional as F

from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.metrics import EvalProtocol
from fewstep.metrics.clip_score import ClipScore
from painter import colours, painter

transformers = pytest.importorskip("transformers")
PROMPTS = ["red", "a long green prompt " * 40, "", "猫 🐈"]


@pytest.fixture
def clip(home):
    """A CLIP of 16 x 16 pixels with random weights, where fewstep looks for the published one."""
    letters = [*map(chr, range(33, 127)), *map(chr, range(161, 173)), *map(chr, range(174, 256))]
    letters += [chr(i) for i in range(256, 324)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    folder = home / "weights" / "clip-vit-base-patch32"
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    layers = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    layers |= {"num_hidden_layers": 1, "projection_dim": 16}
    ends = {"bos_token_id": len(vocabulary) - 2, "eos_token_id": len(vocabulary) - 1}
    config = transformers.CLIPConfig(
        text_config={**layers, **ends, "vocab_size": len(vocabulary)},
        vision_config={**layers, "image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.CLIPModel(config)
    network.save_pretrained(folder)
    transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder)
    return network.eval(), transformers.CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_are_the_cosines_of_transformers(clip, channels):
    network, tokenizer = clip
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, channels, 16, 16), generator=generator).to(torch.uint8)
    measure = ClipScore.create(ImageSet("noise", images))
    rows = measure.rows(images, PROMPTS)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = (images.expand(-1, 3, -1, -1) / 255 - mean) / std
    for row, prompt in enumerate(PROMPTS):
        tokens = tokenizer(prompt, truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            output = network(pixel_values=pixels[row : row + 1], **tokens)
        truth = 100 * F.cosine_similarity(output.image_embeds, output.text_embeds).clamp(min=0)
        torch.testing.assert_close(rows[row], truth, rtol=1e-4, atol=1e-3)
    assert len(rows.unique()) > 1


def test_a_score_has_the_mean_and_its_interval(clip):
    measure = ("clip-score",)
    evaluator = Evaluator(colours(), EvalProtocol(12, "pixels", measures=measure))
    score = evaluator.score(painter(), steps=1)
    again = evaluator.score(painter(), steps=1, batch=5)
    (extra,) = score.measures.extra
    assert again.measures.extra[0].value == pytest.approx(extra.value, rel=1e-5)
    rows = torch.tensor([[20.0], [22.0], [27.0], [31.0]])
    (extra,) = evaluator.prompt_measures[0].values(rows)
    assert extra.value == 25
    assert extra.high - extra.value == pytest.approx(1.96 * (74 / 3 / 4) ** 0.5)
    assert extra.note.startswith("CLIP score: clip-vit-base-patch32 (")


def test_missing_weights_are_named(home, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    images = ImageSet("plain", torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="cannot load CLIP from openai/clip-vit-base-patch32"):
        ClipScore.create(images)
