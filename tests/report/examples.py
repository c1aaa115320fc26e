"""What the tests of the report share: small generators, scores, and a page read back."""

import base64
import io
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
import torch
from PIL import Image
from torch import nn

from fewstep import recipe
from fewstep.backbones import Backbone
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.metrics import Measures
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.report import Exhibit, write_report
from fewstep.report.exhibits import StyledExhibit
from fewstep.report.pictures import gap
from fewstep.report.svg import BASELINE
from fewstep.sample_spec import SampleSpec
from fewstep.scores import Score
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
    return Generator(denoiser, SampleSpec(shape, classes, names if classes else ()), **told).eval()


MEASURED = {"accuracy": 0.9512}


def score(steps, frechet, *, spread=None, seconds=0.001, measures=MEASURED, **told):
    """With `spread`, the interval is so much to either side."""
    around = {} if spread is None else {
        "frechet_low": frechet - spread, "frechet_high": frechet + spread}  # fmt: skip
    known = {"sampler": "transfer", "evaluations": steps, "samples": 2000, "seed": 0,
             "guidance": 1.0, "weights": "0" * 16, "labels": "in turn", "real": 60_000,
             "extractor": "classifier", "extractor_hash": "c0ffee" * 10, "features": 64,
             "resize": "none", "device": "1 CPU thread (i386)",
             "reference": "digits (1797, 0123456789ab)"}  # fmt: skip
    return Score(steps=steps, seconds_per_image=seconds,
                 measures=Measures(frechet, **around, **measures), **known | told)  # fmt: skip


def entry(name, look, scores):
    """An entry of which only the scores matter."""
    only_scores = Exhibit(name, generator(0.5), scores, None, [], [], baseline=look is BASELINE)
    return StyledExhibit(only_scores, look)


def made_by(**sections):
    return recipe.parse({"data": {"name": "digits"}, "method": {"name": "denoise"}} | sections)


def progress(steps=200):
    yield {"step": 0, "hardware": "1 CPU thread (i386)"}
    for step in range(10, steps + 1, 10):
        numbers = {"student/loss": 2 / step, "student/gradient": 1.0, "fake/loss": 3 / step}
        yield {"step": step, "images": 32 * step, "seconds": 0.1 * step, **numbers}
    yield {"step": steps, "score": score(1, 9.5, spread=0.5).table()}


def exhibits(shape=(1, 6, 5), classes=3, **told):
    made = {
        "teacher": (generator(0.9, shape, classes, **told), [
            score(1, 82.31, spread=2.0), score(16, 6.172, spread=0.1, seconds=0.0123),
            score(10, 5.124, spread=0.05, seconds=0.0147, sampler="heun", evaluations=19),
        ]),
        "regress": (generator(0.5, shape, classes, grid=FixedGrid(((1.0,),)), **told), [
            score(1, 7.418, spread=0.1, seconds=0.00042)
        ]),
        "tuned": (generator(0.3, shape, classes, **told), [
            score(1, 11.9, spread=1.0), score(4, 5.02, spread=0.04)
        ]),
    }  # fmt: skip
    return [
        Exhibit(name, g, scores, made_by(fit={"steps": len(name)}), [*progress()],
                [f"train {name}"], baseline=name == "teacher")
        for name, (g, scores) in made.items()
    ]  # fmt: skip


class Page(HTMLParser):
    """Text, attributes, images and tables, a list of rows each; refuses unbalanced tags."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.texts, self.images, self.tables = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "img":
            self.images.append((dict(attrs)["alt"], pixels(dict(attrs)["src"])))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
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
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join("".join(self.texts).split())

    def under(self, *heading):
        """The tables that have these heads, in this order, somewhere."""
        return [t for t in self.tables if [c for c in t[0] if c in heading] == list(heading)]


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
