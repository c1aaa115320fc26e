"""Sections of a report that show generated images, embedded as PNG files."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fewstep.drawing import generate
from fewstep.errors import InputError, errors_about
from fewstep.evaluation import Evaluator
from fewstep.formatting import quantity
from fewstep.images import read_picture, to_uint8
from fewstep.metrics.accumulator import COPY_ROWS
from fewstep.noise import noise_from_seeds
from fewstep.plugins import name_of
from fewstep.report.exhibits import StyledExhibit
from fewstep.report.ranking import best, fastest, rank
from fewstep.report.rendering import render
from fewstep.sample_spec import SampleSpec
from fewstep.sampler_choices import convert_step
from fewstep.scores import Score

SEED = 0
COLUMNS = 10  # images in a row
UNSCORED_STEPS = (1, 4, 16)  # step counts that the report shows of a generator without scores


class Setting(NamedTuple):
    """A step count and a sampler, with their score; None if they have not been scored."""

    steps: int
    sampler: str
    score: Score | None

    @property
    def text(self) -> str:
        sampler = self.score.sampler_text if self.score else self.sampler
        return f"{quantity(self.steps, 'step')} of {sampler}"


class Strip(NamedTuple):
    """A row of images in one PNG file."""

    label: str
    src: str
    """Data URI."""
    alt: str
    pixelated: bool = False
    """Whether a browser should enlarge the image without smoothing."""
    entry: StyledExhibit | None = None
    setting: Setting | None = None


class Grid(NamedTuple):
    """The strips of one entry."""

    entry: StyledExhibit
    setting: Setting
    strips: Sequence[Strip]
    captions: Sequence[Sequence[str]] = ()
    """For each column, the captions of its images from top to bottom."""


def settings(entry: StyledExhibit) -> list[Setting]:
    """Sampler settings shown in the report: all scored ones; for the baseline, only the fastest
    and the best."""
    exhibit = entry.exhibit
    if not exhibit.scores:
        sampler = name_of("sampler", type(exhibit.generator.step))
        counts = exhibit.generator.grid.counts or UNSCORED_STEPS
        return [Setting(steps, sampler, None) for steps in counts]
    rows = rank([entry])[0].rows
    if exhibit.baseline:
        rows = [row for row in (fastest(rows), best(rows)) if row]
    scores = [row.score for row in rows]
    choices = [Setting(score.steps, score.sampler, score) for score in scores]
    # scores that differ only in their seed share one setting
    return list({choice.text: choice for choice in choices}.values())


def main_setting(entry: StyledExhibit, *, alone: bool) -> Setting:
    """The setting with the fewest evaluations; for a baseline or the only entry, the one with the
    smallest distance."""
    if alone or entry.exhibit.baseline:
        return min(settings(entry), key=lambda s: s.score.frechet if s.score else -s.steps)
    return min(settings(entry), key=lambda s: s.score.evaluations if s.score else s.steps)


def sample(
    entry: StyledExhibit,
    setting: Setting,
    n: int,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
) -> UInt8[Tensor, "n c h w"]:
    """The first `n` samples of seed SEED, of the classes `labels` or of all classes in turn, and
    likewise of `prompts`."""
    generator = entry.exhibit.generator
    if name_of("sampler", type(generator.step)) != setting.sampler:
        generator = generator.with_sampler(step=convert_step(generator.step, setting.sampler))
    images = generate(generator, n, steps=setting.steps, seed=SEED, labels=labels, prompts=prompts)
    with errors_about(entry.exhibit.name):
        return torch.cat([batch for _, batch in images])


def same_noise(entries: Sequence[StyledExhibit]) -> Markup:
    """The section of images from equal noise: a row per entry and setting, a column per noise."""
    generator, prompts = entries[0].exhibit.generator, _prompts(entries)
    spec, width = generator.spec, generator.image_shape[2]
    names = prompts or [_class_name(spec, i) for i in range(spec.classes)]
    labels = [names[i % len(names)] for i in range(COLUMNS) if names]
    noise = noise_from_seeds([(SEED << 32) + row for row in range(COLUMNS)], spec.shape)
    # noise of latents has any number of channels: their first one is shown
    picture = noise if spec.shape == generator.image_shape else noise[:, :1]
    strips = [_strip("noise", to_uint8(picture / 2), "The starting noise of each column")]
    for entry in entries:
        for setting in settings(entry):
            alt = f"{entry.exhibit.name}, {setting.text}"
            alt += f": {', '.join(labels)}" if labels else ""
            strip = _strip("", sample(entry, setting, COLUMNS, prompts=prompts), alt)
            strips.append(strip._replace(entry=entry, setting=setting))
    # gap between the images of a strip in % of its width, which aligns the labels with the columns
    column_gap = 100 * gap(width) / (COLUMNS * (width + gap(width)) - gap(width))
    return render(
        "same_noise.html.j2",
        strips=strips,
        labels=labels,
        noun="prompt" if prompts else "class",
        column_gap=f"{column_gap:.3f}",
        columns=COLUMNS,
        seed=SEED,
    )


def samples(entries: Sequence[StyledExhibit]) -> Markup:
    """The section of samples: one grid per entry, with one row per class or prompt."""
    spec, prompts = entries[0].exhibit.generator.spec, _prompts(entries)
    classes = range(0 if prompts else min(spec.classes, COLUMNS))
    names = prompts or [_class_name(spec, i) for i in classes] or [""] * COLUMNS
    labels = [i for i in classes for _ in range(COLUMNS)] or None
    texts = [prompt for prompt in prompts or () for _ in range(COLUMNS)] or None
    grids: list[Grid] = []
    for entry in entries:
        setting = main_setting(entry, alone=len(entries) == 1)
        alt = f"{entry.exhibit.name}, {setting.text}: {COLUMNS} samples"
        rows = sample(entry, setting, len(names) * COLUMNS, labels, texts).split(COLUMNS)
        noun = " of prompt " if prompts else " of class "
        strips = [
            _strip(name, row, f"{alt}{name and noun}{name}")
            for name, row in zip(names, rows, strict=True)
        ]
        grids.append(Grid(entry, setting, strips))
    return render(
        "samples.html.j2",
        grids=grids,
        noun="prompt" if prompts else "class" if classes else "",
        size=_grid_size(names, entries[0]),
        seed=SEED,
        baseline=_baseline_name(entries),
    )


def neighbours(entries: Sequence[StyledExhibit], evaluator: Evaluator | None) -> Markup:
    """The section of samples above their nearest real images; empty without an evaluator.

    Raises InputError if the real images have another shape.
    """
    if evaluator is None:
        return Markup()
    shape, images = entries[0].exhibit.generator.image_shape, evaluator.images
    if shape != images.shape:
        raise InputError(
            f"the generators make images of shape {shape}, "
            f"but those of {images.name} have shape {images.shape}"
        )
    return render(
        "neighbours.html.j2",
        grids=[_nearest(entry, evaluator, alone=len(entries) == 1) for entry in entries],
        size=_grid_size(["2nd nearest"], entries[0]),
        columns=COLUMNS,
        seed=SEED,
        images=images,
        candidates=len(evaluator.reference.features),
        extractor=evaluator.extractor.name,
        copies_of=COPY_ROWS,
        baseline=_baseline_name(entries),
    )


def _nearest(entry: StyledExhibit, evaluator: Evaluator, *, alone: bool) -> Grid:
    setting = main_setting(entry, alone=alone)
    prompts, real = _prompts([entry]), evaluator.images
    images, reference = sample(entry, setting, COLUMNS, prompts=prompts), evaluator.reference
    features = evaluator.extractor(images).cpu()
    rows = reference.nearest(features, k=min(2, len(reference.features))).rows
    name = f"{entry.exhibit.name}, {setting.text}"
    strips = [_strip("sample", images, f"{name}: {COLUMNS} samples")]
    labels = (("nearest", "nearest"), ("2nd nearest", "second nearest"))
    for (label, rank_name), column in zip(labels, rows.T, strict=False):
        alt = f"the {rank_name} training image of each sample of {name}"
        strips.append(_strip(label, real.images[column], alt))
    captions: list[list[str]] = []
    if prompts and real.captions:
        for number, nearest in enumerate(rows.tolist()):
            prompt = prompts[number % len(prompts)]
            captions.append([prompt, *("; ".join(real.captions[row]) for row in nearest)])
    return Grid(entry, setting, strips, captions)


def before_and_after(entries: Sequence[StyledExhibit]) -> Markup:
    """The section of each entry's first and last sample grid; empty if none has several grids."""
    pictures: list[tuple[StyledExhibit, str, str]] = []
    for entry in entries:
        grids = entry.exhibit.grids
        for path in (grids[0], grids[-1]) if len(grids) > 1 else ():
            step = int(path.stem.rpartition("-")[2])
            when = f"after {quantity(step, 'step')}" if step else "before training"
            pictures.append((entry, when, data_uri(read_picture(path))))
    return render("before_and_after.html.j2", pictures=pictures) if pictures else Markup()


def _prompts(entries: Sequence[StyledExhibit]) -> Sequence[str] | None:
    """At most COLUMNS example prompts of the first entry, for all of them; None without text."""
    spec = entries[0].exhibit.generator.spec
    return None if spec.text is None else spec.examples(COLUMNS) or ("",)


def _baseline_name(entries: Sequence[StyledExhibit]) -> str | None:
    return next((e.exhibit.name for e in entries if e.exhibit.baseline), None)


def _grid_size(names: Sequence[str], entry: StyledExhibit) -> str:
    """CSS lengths of a grid: the width of its labels, and a minimum that shows all pixels."""
    generator = entry.exhibit.generator
    width = generator.image_shape[2]
    min_width = COLUMNS * (width + gap(width)) * (2 if width <= 16 else 1) + 100
    longest = "5rem" if generator.spec.text is None else "9rem"
    return f"--name: min({longest}, {max(map(len, names))}ch); --least: max(17rem, {min_width}px)"


def _class_name(spec: SampleSpec, label: int) -> str:
    return spec.class_names[label] if spec.class_names else str(label)


def _strip(label: str, images: UInt8[Tensor, "n c h w"], alt: str) -> Strip:
    return Strip(label, data_uri(row_png(images)), alt, pixelated=images.shape[-1] <= 32)


def gap(width: int) -> int:
    """Number of transparent pixels between two images of this width in a strip."""
    return max(1, width // 10)


def row_png(images: UInt8[Tensor, "n c h w"]) -> bytes:
    """A PNG file with all images in one row, not resized."""
    n, c, h, w = images.shape
    opaque = torch.full((n, 1, h, w), 255, dtype=torch.uint8)
    spaced = functional.pad(torch.cat([images, opaque], 1), (0, gap(w)))
    pixels = spaced.permute(2, 0, 3, 1).reshape(h, -1, c + 1)[:, : -gap(w)]
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, format="PNG", optimize=True)
    return file.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG file as a data URI, so that the page has no external files."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
