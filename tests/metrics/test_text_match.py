"""Whether images show what their prompts say, on sets whose captions tell the images."""

import json
import math
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from fewstep.cli import main
from fewstep.data import ImageSet, load
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.metrics import EvalProtocol, ScoreAccumulator, text_match
from fewstep.metrics.measures import ExtraMeasure
from fewstep.metrics.text_match import CaptionPool, TextMatch, train_scorer, wilson_interval
from fewstep.metrics.text_match.network import TextImageNetwork
from fewstep.metrics.text_match.training import augment, contrastive_loss
from fewstep.scores import score_from
from painter import colours, painter
from prompted import captioned_folder, prompted, prompted_run

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "yellow": (255, 255, 0),
}
PLACES = {"left": 0, "middle": 3, "right": 6}


def bars(skip=()):
    """Two bars of two colours on grey, 8 x 8 pixels: the caption determines the image."""
    images, captions, bases, tones = [], [], [], []
    for place, x in PLACES.items():
        for first in COLOURS:
            for second in COLOURS:
                if (place, first, second) in skip:
                    continue
                image = torch.full((3, 8, 8), 128, dtype=torch.uint8)
                image[:, :4, x : x + 2] = torch.tensor(COLOURS[first]).view(3, 1, 1)
                image[:, 4:, x : x + 2] = torch.tensor(COLOURS[second]).view(3, 1, 1)
                images.append(image)
                bases.append(f"{first} bar, {place}")
                tones.append(second)
                captions.append((f"{first} bar, {place}, {second} below",))
    columns = {"base": tuple(bases), "tone": tuple(tones)}
    return ImageSet("bars", torch.stack(images), columns=columns, captions=tuple(captions))


# each of these parts occurs in many others
HELD_OUT = [("left", "red", "blue"), ("middle", "green", "red"), ("right", "blue", "white")]


@pytest.fixture(scope="module")
def scorer():
    return train_scorer(bars(skip=HELD_OUT), count=12_800)


def prompts(images):
    return [captions[0] for captions in images.captions]


def test_images_that_their_captions_determine_are_found(scorer):
    images = bars(skip=HELD_OUT)
    measure = TextMatch(scorer, CaptionPool([images]))
    match, tone = measure.values(measure.rows(images.images, prompts(images)))
    assert (match.value, tone.value) == (1, 1) and match.high == pytest.approx(1)
    assert (match.measure.key, tone.measure.key) == ("text_match", "tone_match")


def test_new_compositions_of_known_parts_are_found(scorer):
    everything = bars()
    measure = TextMatch(scorer, CaptionPool([everything]))
    rows = [
        i
        for i, (base, tone) in enumerate(
            zip(everything.columns["base"], everything.columns["tone"], strict=True)
        )
        if any((base, tone) == (f"{a} bar, {place}", b) for place, a, b in HELD_OUT)
    ]
    found = measure.rows(everything.images[rows], [prompts(everything)[i] for i in rows])
    assert found.tolist() == [[1, 1]] * len(HELD_OUT)


def test_captions_of_other_images_are_found_by_chance(scorer):
    images = bars(skip=HELD_OUT)
    measure = TextMatch(scorer, CaptionPool([images]))
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(20):
        order = torch.randperm(len(images), generator=generator)
        found.append(measure.rows(images.images[order], prompts(images)))
    match, tone = measure.values(torch.cat(found))
    bases, tones = len(COLOURS) * len(PLACES), len(COLOURS)
    assert match.low < 1 / bases < match.high
    assert tone.low < 1 / tones < tone.high
    blank = torch.full_like(images.images, 128)
    (match, tone) = measure.values(measure.rows(blank, prompts(images)))
    assert match.value < 3 / bases and tone.value < 2 / tones


def test_equal_sets_and_seeds_give_equal_scorers_and_the_file_is_used(tmp_path, monkeypatch):
    images = bars()
    torch.manual_seed(0)
    first = train_scorer(images, count=512)
    torch.manual_seed(1)
    assert train_scorer(images, count=512).hash == first.hash
    assert train_scorer(images, count=512, seed=1).hash != first.hash
    training = "fewstep.metrics.text_match.training.train_scorer"
    monkeypatch.setattr(training, lambda images: first)
    TextMatch.create(images, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    monkeypatch.delattr(training)
    assert TextMatch.create(images, cache=tmp_path).scorer.hash == first.hash
    path.write_bytes(path.read_bytes()[:-1] + b"?")  # damaged: it is trained again
    monkeypatch.setattr(training, lambda images: train_scorer(images, count=512), raising=False)
    assert TextMatch.create(images, cache=tmp_path).scorer.hash == first.hash
    assert text_match.scorer_file(images, tmp_path) == path


def test_rivals_have_other_bases_and_the_tone_of_the_prompt_where_they_can():
    train, test = load("emoji"), load("emoji", split="test")
    pool = CaptionPool([train, test])
    prompt = "woman farmer, dark skin tone"
    rivals = pool.rivals(prompt)
    assert len(set(rivals)) == 99 and rivals == pool.rivals(prompt)
    place = {
        caption: (base, tone)
        for images in (train, test)
        for (caption,), base, tone in zip(
            images.captions, images.columns["base"], images.columns["tone"], strict=True
        )
    }
    own = [place[rival] for rival in rivals]
    assert len({base for base, _ in own} | {"woman farmer"}) == 100
    with_dark = {base for base, tone in place.values() if tone == "dark"}
    assert all(tone == "dark" * (base in with_dark) for base, tone in own)
    others = {place[other] for other in pool.other_tones(prompt)}
    tones = ("", "light", "medium-light", "medium", "medium-dark")
    assert others == {("woman farmer", tone) for tone in tones}
    assert pool.other_tones("wine glass") == pool.other_tones("a caption of no image") == []
    two = next(caption for caption, (_, tone) in place.items() if "," in tone)
    assert pool.other_tones(two) == []
    assert len(pool.rivals("a caption of no image")) == 99


def test_captions_without_bases_are_bases_but_those_of_one_image_are_no_rivals():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    captions = (("a cat", "a grey cat"), ("a dog",), ("a cat", "a black cat"))
    pool = CaptionPool([ImageSet("pets", images, captions=captions)])
    assert pool.captions == ["a cat", "a grey cat", "a dog", "a black cat"]
    assert pool.rivals("a grey cat") == pool.rivals("a cat") == ["a dog"]
    assert set(pool.rivals("a dog")) == {"a cat"}


def test_sets_without_captions_are_refused():
    images = ImageSet("plain", torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="text-match learns from captions, and plain has none"):
        TextMatch.create(images)
    same = replace(images, captions=(("an icon",), ("an icon",)))
    with pytest.raises(InputError, match="compares captions, and those of plain are all the same"):
        TextMatch.create(same)


def test_the_loss_is_that_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.randn(2, 5, 3, generator=generator)
    loss = contrastive_loss(images, captions, torch.eye(5, dtype=torch.bool), torch.tensor(2.0))
    logits = (2 * images @ captions.T).double()
    labels = torch.arange(5)
    cross_entropy = nn.CrossEntropyLoss()
    expected = (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_equal_images_and_captions_are_no_rivals_in_the_loss():
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.randn(2, 3, 4, generator=generator)
    scale = torch.tensor(1.0)
    alone = contrastive_loss(images, captions, torch.eye(3, dtype=torch.bool), scale)
    rows = [0, 1, 2, 2]
    number = torch.tensor(rows)
    twice = contrastive_loss(images[rows], captions[rows], number[:, None] == number, scale)
    # rows 0 and 1 have one more rival; without the mask, rows 2 and 3 could not fall below log 2
    logits = (images @ captions.T)[rows][:, rows]
    logits[2, 3] = logits[3, 2] = -math.inf
    expected = -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2
    assert twice.item() == pytest.approx(expected.item(), rel=1e-5)
    assert twice.item() != pytest.approx(alone.item(), rel=1e-2)


def test_padding_has_no_effect_on_a_caption():
    network = TextImageNetwork((1, 8, 8), 20)
    network.draw(torch.Generator().manual_seed(0))
    tokens = torch.tensor([[3, 4, 5, 9, 9, 9], [3, 4, 5, 0, 1, 2]])
    mask = torch.tensor([[True, True, True, False, False, False]] * 2)
    with torch.no_grad():
        padded = network.text_tower(tokens, mask)
        alone = network.text_tower(tokens[:1, :3], mask[:1, :3])
    torch.testing.assert_close(padded, alone.expand(2, -1))


def test_augmentation_leaves_skin_tones_and_directions_as_they_are():
    # Noto's five skin tones, from light to dark
    codes = ("fadcbc", "e0bb95", "bf8f68", "9b643d", "594539")
    tones = torch.tensor([list(bytes.fromhex(code)) for code in codes]).float()
    number = torch.arange(500) % 5
    plain = tones[number][:, :, None, None].expand(-1, -1, 8, 8)
    new = augment(plain, torch.Generator().manual_seed(0))
    assert torch.equal(torch.cdist(new.mean((2, 3)), tones).argmin(1), number)
    assert len(new.mean((1, 2, 3)).unique()) == 500
    images = torch.zeros(500, 1, 8, 8)
    images[..., 4:] = 255
    new = augment(images, torch.Generator().manual_seed(0))
    assert (new[..., 4:].mean((1, 2, 3)) > new[..., :4].mean((1, 2, 3)) + 100).all()


def test_the_interval_is_wilsons():
    for hits, count in [(0, 10), (3, 10), (98, 100), (500, 500)]:
        expected = binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson_interval(hits, count) == pytest.approx(tuple(expected), abs=1e-6)


@pytest.fixture
def quick_training(monkeypatch):
    """Scorers are trained for a second."""
    short = partial(train_scorer, count=2_560)
    monkeypatch.setattr("fewstep.metrics.text_match.training.train_scorer", short)


def test_a_generator_that_draws_what_it_is_asked_for_is_found(home, quick_training):
    protocol = EvalProtocol(60, "pixels", measures=("text-match",))
    images = colours()
    score = Evaluator(images, protocol).score(painter(), steps=1)
    (match,) = score.measures.extra
    assert match.value == 1 and match.measure.text(score.measures) == "100.0 %"
    assert match.measure.interval(score.measures) == (match.low, match.high)
    note = r"Text match 100\.0 % for 60 real images with these captions \(scorer [0-9a-f]{12}\)"
    note += "; with 3 captions, chance is 33.3 %"
    assert re.fullmatch(note, match.note)
    assert match.note in score.caveats
    assert score_from(json.loads(json.dumps(score.table()))) == score
    # the same generator, asked for another colour than the captions of the images
    wrong = {"red": "green", "green": "blue", "blue": "red"}
    evaluator = Evaluator(images, protocol)
    liar = painter()
    numbers = dict(liar.denoiser.backbone.numbers)
    token = dict(zip(("red", "green", "blue"), numbers, strict=True))
    liar.denoiser.backbone.numbers.update({token[a]: numbers[token[b]] for a, b in wrong.items()})
    score = evaluator.score(liar, steps=1, batch=7)
    assert score.measures.extra[0].value == 0


def test_captions_of_another_set_are_prompts(home, quick_training):
    images = colours()
    blue = replace(images, images=images.images[3:4], labels=None, captions=(("blue",),))
    protocol = EvalProtocol(20, "pixels", measures=("text-match",))
    evaluator = Evaluator(images, protocol, prompted=blue)
    score = evaluator.score(painter(), steps=1)
    assert score.measures.extra[0].value == 1
    assert score.measures.extra[0].note.startswith("Text match 100.0 % for 1 real image with")
    assert score.reference.endswith(f"with captions of colours (1, {blue.fingerprint[:12]})")
    assert score.protocol == evaluator.protocol_key
    # all samples are blue, so that their distance is that of a set of blue images
    constant = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
    constant[:, 2] = 255
    accumulator = ScoreAccumulator(evaluator.reference, 20)
    accumulator.update(constant)
    assert score.frechet == pytest.approx(accumulator.measures().frechet, rel=1e-3)
    for generator, prompts, message in [
        (painter(), replace(blue, captions=()), "the captions of colours cannot be prompts: it ha"),
        (
            prompted(encoder=None),
            blue,
            "the captions of colours cannot be prompts: the generator reads no p",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            Evaluator(images, EvalProtocol(4, "pixels"), prompted=prompts).score(generator, steps=1)


def test_generators_without_prompts_have_no_text_match(home, quick_training):
    evaluator = Evaluator(colours(), EvalProtocol(4, "pixels", measures=("text-match",)))
    with pytest.raises(InputError, match="measure text-match compares images with captions, and"):
        evaluator.score(prompted(encoder=None), steps=1)


def test_the_command_line_takes_prompts_from_a_split(home, tmp_path, quick_training, capsys):
    captioned_folder(tmp_path / "images" / "train")
    captioned_folder(tmp_path / "images" / "test", ("a red dog", "one small dog"))
    run = prompted_run(tmp_path / "run", tmp_path / "images")
    options = ["--samples", "6", "--steps", "1", "--extractor", "pixels", "--json"]
    options += ["--measures", "text-match"]
    scores = []
    for split in ([], ["--caption-split", "test"]):
        assert main(["evaluate", run, *options, *split]) == 0
        scores += json.loads(capsys.readouterr().out)
    train, test = scores
    assert train["reference"] in test["reference"] and train["reference"] != test["reference"]
    for score, count in zip(scores, (5, 2), strict=True):
        assert f"for {count} real images" in score["extra"][0]["note"]
    assert main(["evaluate", run, *options, "--caption-split", "val"]) == 2
    assert "has no split 'valid'" in capsys.readouterr().err
    compare = ["compare", run, *options, "--out", str(tmp_path / "compare.html")]
    assert main([*compare, "--caption-split", "test"]) == 0
    ((score,),) = json.loads(capsys.readouterr().out).values()
    assert score["extra"] == test["extra"] and score["reference"] == test["reference"]
    for verb in ("evaluate", "compare"):
        assert main([verb, "fewstep:digits", "--caption-split", "test"]) == 2
        assert "fewstep:digits reads none: leave it out" in capsys.readouterr().err


def test_an_interval_and_a_note_survive_a_table():
    extra = ExtraMeasure(text_match.TEXT_MATCH, 0.5, 0.4, 0.6, "a note")
    assert ExtraMeasure.from_table(extra.table()) == extra
