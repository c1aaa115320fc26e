"""Drawing of captions: how often each, and whose."""

from collections import Counter

import torch

from fewstep.batching import Batches, ImageStream, Prompts
from fewstep.condition import Condition, Text
from fewstep.sample_spec import SampleSpec
from fewstep.text.captions import CaptionTable
from fewstep.text.learned import LearnedText

CAPTIONS = [["cat"], ["dog", "hound"], [], ["cat", "kitten", "pet", "animal"]]
ENCODER = LearnedText(length=8, vocabulary=200).fit(sum(CAPTIONS, []))
TABLE = CaptionTable(ENCODER, CAPTIONS)
WORDS = {tuple(ENCODER.token_ids(w)): w for each in CAPTIONS for w in each} | {(): ""}


def words(text):
    rows = zip(text.tokens, text.mask, strict=True)
    return [WORDS[tuple(tokens[mask].tolist())] for tokens, mask in rows]


def test_equal_captions_are_encoded_once():
    assert len(TABLE.texts.tokens) == 7  # six different ones, and none


def test_each_caption_of_an_image_is_equally_likely():
    for image, captions in enumerate(CAPTIONS):
        index = torch.full((1000,), image)
        uniform = (torch.arange(1000) + 0.5) / 1000
        counts = Counter(words(TABLE.draw(index, uniform)))
        assert counts == {word: 1000 // len(captions or [""]) for word in captions or [""]}


def test_each_pair_of_image_and_caption_is_equally_likely():
    uniform = (torch.arange(800) + 0.5) / 800
    images, text = TABLE.draw_any(uniform)
    pairs = Counter(zip(images.tolist(), words(text), strict=True))
    expected = [(i, word) for i, each in enumerate(CAPTIONS) for word in each or [""]]
    assert pairs == dict.fromkeys(expected, 100)


def test_prompts_come_with_the_class_of_their_image():
    labels = torch.tensor([5, 6, 7, 8])
    cond = Prompts(TABLE, labels).draw((torch.arange(8) + 0.5) / 8)
    assert cond.label.tolist() == [5, 6, 6, 7, 8, 8, 8, 8]
    assert words(cond.text) == ["cat", "dog", "hound", "", "cat", "kitten", "pet", "animal"]


def test_training_draws_captions_anew_and_independently_of_mirroring():
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 1, 2).clone()
    images[..., 1] += 10
    stream = ImageStream(images, None, captions=TABLE, flip=True)
    spec = SampleSpec((1, 1, 2), text=ENCODER)
    batches = Batches({"images": stream}, spec, batch=4, seed=0, prompts=Prompts(TABLE, None))
    seen, drawn = Counter(), Counter()
    for step in range(400):
        (batch,) = batches.step(step)
        first = batch.images.x0[:, 0, 0, 0]
        rows = zip(first.tolist(), words(batch.images.cond.text), strict=True)
        seen.update((int(x) % 10, x >= 10, word) for x, word in rows)
        drawn.update(words(batch.cond().text))
    assert {(image, word) for image, _, word in seen} == {
        (i, word) for i, each in enumerate(CAPTIONS) for word in each or [""]
    }
    for word in CAPTIONS[3]:  # 400 images in 4 x 2 kinds
        for mirrored in (False, True):
            assert 25 <= seen[3, mirrored, word] <= 80
    assert 290 <= drawn["cat"] <= 510 and set(drawn) == set(WORDS.values())


def test_all_parts_of_a_condition_are_treated_alike():
    text = Text(torch.arange(6).view(3, 2), torch.tensor([[1, 1], [1, 0], [0, 0]]).bool())
    cond = Condition(torch.tensor([4, -1, -1]), text=text)
    assert cond.is_present().tolist() == [True, True, False]
    assert not cond.null().is_present().any() and len(cond.null()) == 3
    kept = cond.drop(torch.tensor([True, False, False]))
    assert kept.is_present().tolist() == [False, True, False]
    both = cond.concat(cond.null())
    assert both.text.tokens.tolist() == [[0, 1], [2, 3], [4, 5]] * 2
    assert both[3:].text.mask.sum() == 0 and both[:3].text.mask.equal(text.mask)
    again = Condition.from_tensors({"x": torch.ones(3), **both.tensors()})
    assert again.label.equal(both.label) and again.text.mask.equal(both.text.mask)
    assert Condition.from_tensors({"x": torch.ones(3)}) is None
