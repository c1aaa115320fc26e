import base64
import io
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fewstep import report
from fewstep.backbones import Backbone
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.evaluation import Score
from fewstep.generator import Generator, Subject
from fewstep.images import to_uint8
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.report import Exhibit, report_run, write_report
from fewstep.report.plots import gap
from fewstep.sampling import heun, noise_from_seeds
from fewstep.times import FixedGrid

HOSTILE = """<script>alert("1")</script><img src=http://x/y> & '$title' $x^2$"""
VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass(frozen=True)
class Config:
    name: str = "painter"


class Painter(Backbone):
    """Sees x0 = gain·tanh(x_t) + label/10, so that noise, label, steps and network all show."""

    def __init__(self, gain, shape, classes):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.config, self.shape, self.classes, self.level_scale = Config(), shape, classes, 1.0

    def forward(self, x, level, *, level_s=None, cond=None):
        x0 = self.gain * x.tanh()
        if cond is not None:
            x0 = x0 + cond.label.view(-1, 1, 1, 1) / 10
        return (x - x0) / (level / 1000).view(-1, 1, 1, 1)

    def features(self, x, level, *, cond=None):
        return [x]


def generator(gain, shape=(1, 6, 5), classes=3, names=("cat", "dog", "emu"), **told):
    denoiser = Denoiser(Painter(gain, shape, classes), Flow(), Velocity())
    return Generator(denoiser, Subject(shape, classes, names if classes else ()), **told).eval()


def score(steps, frechet, *, seconds=0.001, **told):
    known = {"sampler": "transfer", "evaluations": steps, "samples": 2000, "seed": 0,
             "extractor": "classifier", "extractor_hash": "c0ffee" * 10, "accuracy": 0.9512,
             "reference": "digits (1797, 0123456789ab)"}  # fmt: skip
    return Score(steps=steps, frechet=frechet, seconds_per_image=seconds, **known | told)


def progress(steps=200):
    for step in range(10, steps + 1, 10):
        numbers = {"student/loss": 2 / step, "student/gradient": 1.0, "fake/loss": 3 / step}
        yield {"step": step, "images": 32 * step, "seconds": 0.1 * step, **numbers}
    yield {"step": steps, "score": score(1, 9.5).table()}


def exhibits(shape=(1, 6, 5), classes=3, **told):
    made = {
        "teacher": (generator(0.9, shape, classes, **told), [
            score(1, 82.31), score(16, 6.172, seconds=0.0123),
            score(10, 5.124, seconds=0.0147, sampler="heun", evaluations=19),
        ]),
        "regress": (generator(0.5, shape, classes, grid=FixedGrid(((1.0,),)), **told), [
            score(1, 7.418, seconds=0.00042)
        ]),
        "tuned": (generator(0.3, shape, classes, **told), [score(1, 11.9), score(4, 5.02)]),
    }  # fmt: skip
    return [
        Exhibit(name, g, scores, f"[fit]\nsteps = {len(name)}\n", [*progress()], [f"train {name}"])
        for name, (g, scores) in made.items()
    ]


class Page(HTMLParser):
    """Text, attributes, images and table rows; refuses tags that do not balance."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts, self.images, self.rows = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append((dict(attrs)["alt"], pixels(dict(attrs)["src"])))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def row(self, *start):
        """The cells of the one row that has these, in this order, somewhere."""
        (found,) = [r for r in self.rows if [c for c in r if c in start] == list(start)]
        return found


def pixels(uri):
    kind, data = uri.split(",", 1)
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def tiles(image, count, width):
    """A strip cut into its images (count, h, w, c), the gaps between them checked to be clear."""
    apart = gap(width)
    cut = [image[:, i * (width + apart) :][:, :width] for i in range(count)]
    between = [image[:, i * (width + apart) + width :][:, :apart] for i in range(count - 1)]
    assert all((b[..., -1] == 0).all() for b in between)
    assert all((c[..., -1] == 255).all() for c in cut)
    assert image.shape[1] == count * (width + apart) - apart
    return np.stack(cut)[..., :-1]


def write(folder, shown=None, **told):
    path = folder / "deep" / "report.html"
    write_report(path, shown or exhibits(), **{"title": "One step", **told})
    return path.read_text("utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(write(tmp_path_factory.mktemp("report"), notes=["two cores"]))


def test_the_table_says_the_scores(page):
    assert page.rows[0] == [
        "Generator", "Steps", "Fréchet distance (classifier)\xa0↓",
        "Relative to the teacher’s best\xa0↓", "Accuracy\xa0↑", "Network evaluations\xa0↓",
        "Time per image\xa0↓", "Parameters", "Sampler",
    ]  # fmt: skip
    assert page.rows[1:] == [
        ["● teacher", "1", "82.3", "16.1 ×", "95.1 %", "1", "1.00 ms", "1", "transfer"],
        ["16", "6.17", "1.20 ×", "95.1 %", "16", "12.3 ms", "1", "transfer"],
        ["10", "5.12", "1.00 ×", "95.1 %", "19", "14.7 ms", "1", "heun teacher’s best"],
        ["■ regress", "1", "7.42", "1.45 ×", "95.1 %", "1", "420 µs", "1", "transfer"],
        ["▲ tuned", "1", "11.9", "2.32 ×", "95.1 %", "1", "1.00 ms", "1", "transfer"],
        ["4", "5.02", "✓ 0.980 ×", "95.1 %", "4", "1.00 ms", "1", "transfer best student"],
    ]
    assert "2,000 samples each against digits (1797, 0123456789ab)" in page.text
    assert "noise seed 0" in page.text
    assert "FID" not in page.text


def test_the_sentences_follow_from_the_scores(page):
    assert (
        "regress needs 1 network evaluation and 420 µs for an image, at a Fréchet distance "
        "(classifier) of 7.42 and with 95.1 % of its samples in the class asked for. That is "
        "1.45 × the teacher’s best of 5.12, which takes 19 network evaluations and 14.7 ms, and "
        "0.0901 × the 82.3 that the teacher reaches with 1 evaluation. Closest of all students "
        "comes tuned with 4 network evaluations and 1.00 ms, at a Fréchet distance (classifier) "
        "of 5.02 and with 95.1 % of its samples in the class asked for, 0.980 × that best."
    ) in page.text
    assert "35.0 ×" in page.text  # 14.7 ms over 420 µs, in a tile


def test_the_same_noise_goes_through_all(page):
    teacher, regress, tuned = (e.generator for e in exhibits())
    noise = noise_from_seeds(range(10), (1, 6, 5))
    cond = Condition(torch.arange(10) % 3)
    wanted = {
        "teacher, 1 step of transfer": teacher(noise, steps=1, cond=cond),
        "teacher, 10 steps of heun": teacher.sampled(step=heun)(noise, steps=10, cond=cond),
        "regress, 1 step of transfer": regress(noise, steps=1, cond=cond),
        "tuned, 1 step of transfer": tuned(noise, steps=1, cond=cond),
        "tuned, 4 steps of transfer": tuned(noise, steps=4, cond=cond),
    }
    labels = "cat, dog, emu, cat, dog, emu, cat, dog, emu, cat"
    (start, *shown) = page.images[:6]
    assert start[0] == "The starting noise of each column"
    assert np.array_equal(tiles(start[1], 10, 5)[..., 0], to_uint8(noise / 2)[:, 0])
    assert [alt for alt, _ in shown] == [f"{name}: {labels}" for name in wanted]
    for (_, image), images in zip(shown, wanted.values(), strict=True):
        assert np.array_equal(tiles(image, 10, 5)[..., 0], to_uint8(images.detach())[:, 0])


def test_samples_have_a_row_for_each_class_students_at_their_quickest(page):
    shown = page.images[6:]
    assert [alt for alt, _ in shown] == [
        f"{way}: 10 samples of class {name}"
        for way in ("teacher, 10 steps of heun", "regress, 1 step of transfer",
                    "tuned, 1 step of transfer")
        for name in ("cat", "dog", "emu")
    ]  # fmt: skip
    dogs = exhibits()[1].generator(
        noise_from_seeds(range(10, 20), (1, 6, 5)), cond=Condition(torch.full((10,), 1))
    )
    assert np.array_equal(tiles(shown[4][1], 10, 5)[..., 0], to_uint8(dogs.detach())[:, 0])


def test_colours_without_classes(tmp_path):
    shown = [replace(e, scores=[replace(s, accuracy=None) for s in e.scores])
             for e in exhibits((3, 8, 12), 0)]  # fmt: skip
    told = Page(write(tmp_path, shown))
    assert "Accuracy" not in told.text
    assert len(told.images) == 6 + 3 * 10
    images = shown[1].generator(noise_from_seeds(range(10), (3, 8, 12)))
    wanted = to_uint8(images.detach()).permute(0, 2, 3, 1)
    assert told.images[3][0] == "regress, 1 step of transfer"
    assert np.array_equal(tiles(told.images[3][1], 10, 12), wanted)


def test_how_each_was_made(page):
    for exhibit in exhibits():
        assert f"train {exhibit.name}" in page.text
        assert f"[fit] steps = {len(exhibit.name)}" in page.text
        assert report.weights_hash(exhibit.generator) in page.text
    assert "c0ffee" * 10 in page.text
    assert "two cores" in page.text
    assert "6,400 images in 20.0 s" in page.text


def test_training_time_counts_every_resumption():
    lines = [{"seconds": s} for s in (1.0, 2.0, 0.5, 4.0, 1.5)]
    assert report._seconds(lines) == 2.0 + 4.0 + 1.5


def test_it_stands_alone(tmp_path):
    html = write(tmp_path)
    told = Page(html)
    for tag, attributes in told.tags:
        assert tag not in ("script", "iframe", "object", "base")
        for name in ("src", "href", "xlink:href"):
            assert re.match(r"data:|#", attributes.get(name) or "#")
        assert not any(name.startswith("on") for name in attributes)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    ids = [attributes["id"] for _, attributes in told.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["xlink:href"][1:] for _, a in told.tags if "xlink:href" in a}
    used |= {a["href"][1:] for tag, a in told.tags if tag == "a"}
    used |= set(re.findall(r"url\(#([^)]*)\)", html))
    used |= {a["aria-labelledby"] for _, a in told.tags if "aria-labelledby" in a}
    assert used <= set(ids)


def test_every_picture_is_described(page):
    assert all(a["aria-label"] for tag, a in page.tags if tag == "svg")
    assert sum(tag == "svg" for tag, _ in page.tags) == 2 + 2 * 3
    assert all(alt for alt, _ in page.images)


def test_hostile_text_stays_text(tmp_path):
    names = (HOSTILE, "b", "c")
    shown = [
        Exhibit(name, generator(0.5, names=names),
                [score(1, 3.0, extractor=HOSTILE, reference=HOSTILE, extractor_hash=HOSTILE)],
                HOSTILE, [*progress()], [HOSTILE])
        for name in ("teacher", HOSTILE, "$a$")
    ]  # fmt: skip
    told = Page(write(tmp_path, shown, title=HOSTILE, notes=[HOSTILE]))
    assert {tag for tag, _ in told.tags}.isdisjoint({"script"})
    assert told.text.count(HOSTILE) >= 15
    assert all(alt.startswith(("The", "teacher", "$a$", HOSTILE)) for alt, _ in told.images)


def test_equal_inputs_give_equal_bytes(tmp_path):
    assert write(tmp_path / "a") == write(tmp_path / "b")


def test_no_scores_no_curves_no_commands(tmp_path):
    few = FixedGrid(((1.0,), (1.0, 0.5)))
    bare = Exhibit("bare", generator(0.5, grid=few), [], "", [], [])
    told = Page(write(tmp_path, [bare]))
    assert [alt.split(":")[0] for alt, _ in told.images[1:4]] == [
        "bare, 1 step of transfer", "bare, 2 steps of transfer", "bare, 2 steps of transfer",
    ]  # fmt: skip
    for heading in ("Scores", "Training", "Commands"):
        assert heading not in told.text


def test_only_images_of_one_kind(tmp_path):
    for shown, match in (
        ([], "at least one generator"),
        ([exhibits()[0], exhibits((1, 6, 5), 0)[1]], "different things .*of 0 classes.*of 3 cl"),
        ([exhibits((2, 6, 5))[0]], r"grey or colour images .* not \(2, 6, 5\)"),
        ([exhibits((2,), 0)[0]], r"grey or colour images .* not \(2,\)"),
    ):
        with pytest.raises(InputError, match=match):
            write_report(tmp_path / "report.html", shown, title="")


def test_a_run_reports_itself(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "recipe.toml").write_text("[fit]\nsteps = 200\n")
    lines = [{"step": 100, "score": score(1, 77.0).table()}, *progress()]
    (folder / "progress.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(report, "load", lambda _: generator(0.5))
    report_run(folder, "fewstep train mine")
    told = Page((folder / "report.html").read_text("utf-8"))
    assert told.row("■ mine")[1:3] == ["1", "9.50"]  # of the last weights alone
    assert "77.0" not in told.text
    assert "fewstep train mine" in told.text
