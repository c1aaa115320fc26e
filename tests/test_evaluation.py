import json
from dataclasses import fields, replace

import pytest
import torch

from analytic import MEAN, SPREAD, Exact, exact
from fewstep import data, metrics
from fewstep.checksums import json_line
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.evaluation import (
    Evaluator,
    cached_score,
    count_evaluations,
    generate,
    seconds_per_image,
    straightness,
)
from fewstep.generator import Generator
from fewstep.images import to_uint8
from fewstep.metrics import EvalProtocol, Measures
from fewstep.noise import noise_from_seeds
from fewstep.parametrization import EDM, Velocity
from fewstep.process import VE, Flow
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Corrector, Heun, Multistep, Renoise, Transfer
from fewstep.scores import Score, append_score, score_from

SHAPE = (1, 8, 8)


def generator(classes=0, **settings):
    return Generator(exact(Flow(), Velocity(), SHAPE), SampleSpec(SHAPE, classes), **settings)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def moments(images):
    result = metrics.Moments(64)
    result.update(metrics.Pixels()(images))
    return result


def test_images_do_not_depend_on_the_batch_size():
    def whole(batch):
        made = generate(generator(10, step=Renoise()), 23, steps=3, seed=4, batch=batch)
        return torch.cat([images for _, images in made])

    assert torch.equal(whole(23), whole(5))
    wanted = generator()(noise_from_seeds([4 << 32], SHAPE))
    assert torch.equal(next(generate(generator(), 1, steps=1, seed=4))[1], to_uint8(wanted))


@pytest.mark.parametrize(
    ("step", "calls"), [(Transfer(), 5), (Heun(), 9), (Multistep(), 5), (Corrector(), 9)]
)
def test_evaluations_are_counted(step, calls):
    assert count_evaluations(generator(step=step), 5) == calls


def test_guidance_counts_twice():
    assert count_evaluations(generator(10).with_guidance(2.0), 3) == 6


def test_a_score_is_the_distance_of_its_samples_and_says_what_it_depends_on(digits):
    evaluator = Evaluator(digits, EvalProtocol(300, "pixels"))
    score = evaluator.score(generator(), steps=2, seed=1, batch=70)
    images = torch.cat([x for _, x in generate(generator(), 300, steps=2, seed=1)])
    made, real = moments(images), moments(digits.images)
    assert score.frechet == pytest.approx(metrics.frechet_distance(made, real), rel=1e-9)
    assert (score.steps, score.evaluations, score.samples, score.seed) == (2, 2, 300, 1)
    assert score.sampler == "transfer" and score.accuracy is None
    assert score.extractor_hash == metrics.Pixels.hash
    assert digits.fingerprint[:12] in score.reference and "1797" in score.reference
    assert score.protocol == evaluator.protocol_key
    assert (score.resize, score.features, score.caveats) == ("none", 64, [])
    table = score.table()
    assert table.keys() >= {"frechet", "kernel_low", "accuracy", "seconds_per_image", "device"}
    assert score_from(json.loads(json.dumps(table))) == score
    # a setting with the name of a measure, such as `precision`, would be lost in the flat table
    other = replace(score, number_format="tf32")
    assert score_from(json.loads(json.dumps(other.table()))) == other
    assert len(table) == len(fields(Score)) - 1 + len(fields(Measures)) - 1


def test_a_set_with_uneven_classes_is_asked_for_in_its_own_shares(digits):
    """A generator that paints each class in its own grey matches the set, whatever its shares."""

    class Grey(Exact):
        def forward(self, x, level, *, level_s=None, cond=None):
            x0 = (cond.label.view(-1, 1, 1, 1) / 5 - 1).expand_as(x)
            return (x - x0) / (level / 1000).view(-1, 1, 1, 1)

    def scored(counts):
        labels = torch.arange(10).repeat_interleave(torch.tensor(counts))
        grey = to_uint8((labels.view(-1, 1, 1, 1) / 5 - 1).expand(-1, 1, 8, 8).float())
        real = data.ImageSet("greys", grey, labels)
        model = Denoiser(Grey(Velocity(), SHAPE), Flow(), Velocity())
        made = Generator(model, SampleSpec(SHAPE, 10))
        return Evaluator(real, EvalProtocol(1000, "pixels")).score(made, steps=1)

    uneven, even = scored([910] + [10] * 9), scored([100] * 10)
    assert (uneven.labels, even.labels) == ("as in the set", "in turn")
    assert uneven.frechet < 0.02 and even.frechet < 0.02  # in turn, the uneven one is at 5


@pytest.mark.parametrize("labels", [None, torch.zeros(60, dtype=torch.int64)])
def test_a_set_without_classes_has_a_default_extractor_of_its_own(
    digits, labels, capsys, monkeypatch
):
    monkeypatch.setattr(
        "fewstep.metrics.extractors.classifier.train_classifier",
        lambda images, labels: metrics.train_classifier(images, labels, steps=4),
    )
    plain = data.ImageSet("plain", digits.images[:60], labels)
    quick = metrics.protocol("quick").with_settings(samples=80)
    score = Evaluator(plain, quick).score(generator(), steps=1)
    lack = "no labels" if labels is None else "only one class"
    assert capsys.readouterr().err == (
        f"fewstep: plain has {lack}, and the extractor classifier learns classes: its scores use "
        "the extractor rotations, unless another is set\n"
    )
    assert score.distance == "Fréchet distance (rotations)" and score.accuracy is None
    assert score.caveats == [
        "the features of rotations are those of a small network that was trained without labels, "
        "to recognise how the real images are rotated; the scores are no FID",
        "60 real images are too few for 64 features of rotations: the Fréchet distance is far too "
        "high; the kernel distance has no such bias",
    ]
    with pytest.raises(InputError, match="plain has none"):
        Evaluator(plain, quick.with_settings(extractor="classifier"))
    labelled = data.ImageSet("labelled", digits.images[:60], digits.labels[:60])
    assert Evaluator(labelled, quick).extractor.name == "classifier"
    assert capsys.readouterr().err == ""


def test_classes_of_another_set_are_asked_for_in_turn_and_not_counted_as_hits(digits, monkeypatch):
    """Ten classes against a set without any, of three, and of ten with other names."""
    monkeypatch.setattr(
        "fewstep.metrics.extractors.classifier.train_classifier",
        lambda images, labels: metrics.train_classifier(images, labels, steps=4),
    )
    names = tuple("abcdefghij")
    model = exact(Flow(), Velocity(), SHAPE)
    made = Generator(model, SampleSpec(SHAPE, 10, tuple("0123456789")))
    few = digits.labels % 3
    sets = {
        "none": (digits.images, None, ()),
        "three": (digits.images, few, ()),
        "named": (digits.images, digits.labels, names),
        "same": (digits.images, digits.labels, digits.class_names),
        "nameless": (digits.images, digits.labels, ()),
    }
    protocol = metrics.protocol("quick").with_settings(samples=40)
    with pytest.warns(UserWarning) as warned:
        scores = {
            name: Evaluator(data.ImageSet(name, *columns), protocol).score(made, steps=1)
            for name, columns in sets.items()
        }
    text = "the classes of the generator and of {} differ ({}): samples take them in turn, without "
    assert [str(warning.message) for warning in warned] == [
        text.format("three", "there are 10 and 3") + "an accuracy",
        text.format("named", "class 0 is '0' and 'a'") + "an accuracy",
    ]
    accuracies = {name: score.accuracy is not None for name, score in scores.items()}
    assert accuracies == {
        "none": False, "three": False, "named": False, "same": True, "nameless": True,
    }  # fmt: skip
    assert {score.labels for score in scores.values()} == {"in turn"}


def test_fewer_samples_than_features_are_warned_of(digits):
    few = Evaluator(digits, EvalProtocol(64, "pixels")).score(generator(), steps=1)
    assert "64 samples are too few for 64 features of pixels" in few.caveats[0]


def test_only_the_standard_inception_is_called_fid(digits):
    score = Evaluator(digits, EvalProtocol(80, "pixels")).score(generator(), steps=1)
    assert score.distance == "Fréchet distance (pixels)"
    standard = {"extractor": "inception", "extractor_hash": metrics.INCEPTION_HASH}
    told = replace(score, **standard, resize="tf1-bilinear to 299")
    assert told.distance == "FID"
    assert replace(told, resize="clean-bicubic to 299").distance == "FID (clean-bicubic to 299)"
    assert replace(told, extractor_hash="0").distance == "Fréchet distance (inception)"
    assert len({s.protocol for s in (score, told, replace(told, samples=9))}) == 3


def test_a_kept_score_is_of_these_weights_and_this_protocol(digits, tmp_path):
    evaluator = Evaluator(digits, EvalProtocol(80, "pixels"))
    score = evaluator.score(generator(), steps=2, seed=1)

    def kept(folder=tmp_path, by=evaluator, made=None, **changed):
        made = generator() if made is None else made
        return cached_score(folder, by, made, **({"steps": 2, "seed": 1} | changed))

    assert kept() is None
    append_score(tmp_path, replace(score, seconds_per_image=99.0))
    found = kept()
    assert found and found.measures == score.measures
    assert found.seconds_per_image < 9  # time is of this moment
    with (tmp_path / "scores.jsonl").open("ab") as file:
        file.write(json_line({"weights": "x"}) + json_line({"version": 0, "score": {}}) + b'{"cut')
    append_score(tmp_path, replace(score, seed=7))
    assert kept() and kept(seed=7)
    assert kept(steps=1) is None and kept(seed=0) is None
    assert kept(by=Evaluator(digits, EvalProtocol(81, "pixels"))) is None
    assert kept(made=generator(step=Heun())) is None
    assert kept(folder=tmp_path / "model.safetensors") is None


def test_real_images_score_better_than_noise(digits):
    evaluator = Evaluator(digits, EvalProtocol(900, "pixels"))
    noise = evaluator.score(generator(), steps=1)
    real = metrics.frechet_distance(moments(digits.images[::2]), evaluator.reference.moments)
    assert real < 0.1 * noise.frechet


def test_what_cannot_be_scored_is_refused(digits):
    evaluator = Evaluator(digits, EvalProtocol(4, "pixels"))
    other = Generator(exact(Flow(), Velocity(), (3, 8, 8)), SampleSpec((3, 8, 8)))
    with pytest.raises(InputError, match=r"shape \(3, 8, 8\)"):
        evaluator.score(other, steps=1)
    for count, seed in ((0, 0), (3, -1)):
        with pytest.raises(InputError, match="at least 1"):
            next(generate(generator(), count, steps=1, seed=seed))


def test_time_is_a_median_in_seconds():
    assert 0 < seconds_per_image(generator(), 1, repeats=3) < 1


@pytest.mark.parametrize("world", [(Flow(), Velocity()), (VE(), EDM())])
def test_straightness_is_that_of_the_closed_form_flow(world):
    """x_t = (1 − t)·mean + r(t)·noise with r² = (1 − t)²·spread² + t²: what bends is r."""
    t = torch.linspace(1, 0, 20_001, dtype=torch.float64)
    rate = torch.sqrt((1 - t).square() * SPREAD**2 + t.square()).diff() / t.diff()
    wanted = (rate.square().mean() - rate.mean() ** 2) / (MEAN**2 + (1 - SPREAD) ** 2)
    made = Generator(exact(*world, SHAPE), SampleSpec(SHAPE))
    assert straightness(made, samples=1500, steps=200) == pytest.approx(float(wanted), rel=0.03)


def test_lines_are_straight():
    class Lines(Exact):
        """The velocity of lines that all end in one point: x_t = t·noise."""

        def forward(self, x, level, *, level_s=None, cond=None):
            return x / (level.reshape(-1, 1, 1, 1) / 1000)

    model = Denoiser(Lines(Velocity(), SHAPE), Flow(), Velocity())
    assert straightness(Generator(model, SampleSpec(SHAPE)), samples=20) < 1e-12
