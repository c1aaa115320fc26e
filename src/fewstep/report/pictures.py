"""What the generators make, as HTML: from one noise, class by class, and beside real images."""

from collections.abc import Sequence
from html import escape

from jaxtyping import UInt8
from torch import Tensor

from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.generator import SampleSpec
from fewstep.images import to_uint8
from fewstep.metrics.accumulator import ASKED
from fewstep.report.exhibits import SEED, Entry, Setting, featured, made, settings, shown_at
from fewstep.report.plots import figure, gap, inline, strip
from fewstep.report.wording import count, number, percent
from fewstep.sampling import noise_from_seeds

COLUMNS = 10  # images in a row


def same_noise(entries: Sequence[Entry]) -> str:
    """A row a generator and way of sampling, a column a noise."""
    spec = entries[0].exhibit.generator.spec
    labels = [_class_name(spec, i % spec.classes) for i in range(COLUMNS) if spec.classes]
    noise = noise_from_seeds([(SEED << 32) + row for row in range(COLUMNS)], spec.shape)
    rows = [_strip("the noise", to_uint8(noise / 2), "The starting noise of each column")]
    for entry in entries:
        for setting in settings(entry):
            far = f", distance {number(setting.score.frechet)}" if setting.score else ""
            said = f"<small>{escape(setting.way)}{far}</small>"
            what = f"{entry.exhibit.name}, {setting.way}"
            described = f"{what}: {', '.join(labels)}" if labels else what
            images = made(entry, setting, COLUMNS)
            rows.append(_strip(f"{entry.who.label} {said}", images, described))
    asked = " and is asked for the class above it" if labels else ""
    return (
        f"<p>Each column starts from one noise{asked}; each row is one generator. These are the "
        f"first {COLUMNS} samples of seed {SEED}, not chosen ones.</p>\n"
        f'<div class="same">\n{_labels(labels, spec.shape[2])}{"".join(rows)}</div>\n'
    )


def samples(entries: Sequence[Entry]) -> str:
    """A grid a generator, a row a class."""
    spec = entries[0].exhibit.generator.spec
    classes = range(min(spec.classes, COLUMNS))
    names = [_class_name(spec, i) for i in classes] or [""] * COLUMNS
    labels = [i for i in classes for _ in range(COLUMNS)] or None
    figures: list[str] = []
    for entry in entries:
        setting = featured(entry, alone=len(entries) == 1)
        images = made(entry, setting, len(names) * COLUMNS, labels)
        what = f"{entry.exhibit.name}, {setting.way}"
        rows = "".join(
            _strip(escape(name), row, f"{what}: {COLUMNS} samples{name and ' of class '}{name}")
            for name, row in zip(names, images.split(COLUMNS), strict=True)
        )
        figures.append(figure(_caption(entry, setting), rows))
    told = ["A row is a class."] if classes else []
    told += [shown_at(entries), f"Seed {SEED}, not chosen."]
    return f"<p>{escape(' '.join(filter(None, told)))}</p>\n{_grids(figures, names, spec)}"


def before_and_after(entries: Sequence[Entry]) -> str:
    """The first and the last grid of each that kept some on the way; maybe nothing."""
    figures: list[str] = []
    for entry in entries:
        grids = entry.exhibit.grids
        for path in (grids[0], grids[-1]) if len(grids) > 1 else ():
            step = int(path.stem.rpartition("-")[2])
            when = f"after {count(step, 'step')}" if step else "before training"
            picture = (
                f'<img class="grid" src="{inline(path.read_bytes())}" '
                f'alt="{escape(entry.exhibit.name)}, samples {when}">'
            )
            figures.append(figure(f"{entry.who.label} <small>{when}</small>", picture))
    if not figures:
        return ""
    told = "The same noise and classes, at the steps that each run draws as it trains."
    return f'<p>{told}</p>\n<div class="charts">\n{"".join(figures)}</div>\n'


def neighbours(entries: Sequence[Entry], evaluator: Evaluator | None) -> str:
    """Samples above the real images most like them; nothing without real images."""
    if evaluator is None:
        return ""
    spec, real = entries[0].exhibit.generator.spec, evaluator.images
    if spec.shape != real.shape:
        raise InputError(
            f"the generators make {spec.shape}, the set {real.name} holds {real.shape}"
        )
    figures = [_beside(entry, evaluator, alone=len(entries) == 1) for entry in entries]
    kept = len(evaluator.reference.features)
    of = f"{len(real):,} images" if kept == len(real) else f"{kept:,} of {len(real):,} images"
    told = (
        f"The first {COLUMNS} samples of seed {SEED}, and below each the two images most like it "
        f"among {of} of {real.name}, by the features of {evaluator.extractor.name}. A generator "
        f"that merely remembers shows its sample again just below it. {shown_at(entries)}"
    )
    return f"<p>{escape(told.strip())}</p>\n{_grids(figures, ['2nd nearest'], spec)}"


def _beside(entry: Entry, evaluator: Evaluator, *, alone: bool) -> str:
    setting = featured(entry, alone=alone)
    images, reference = made(entry, setting, COLUMNS), evaluator.reference
    found = reference.nearest(
        evaluator.extractor(images).cpu(), k=min(2, len(reference.features))
    ).rows
    what = f"{entry.exhibit.name}, {setting.way}"
    rows = [_strip("sample", images, f"{what}: {COLUMNS} samples")]
    for rank, (label, said) in enumerate(
        (("nearest", "nearest"), ("2nd nearest", "second nearest"))
    ):
        if rank < found.shape[1]:
            near = evaluator.images.images[found[:, rank]]
            rows.append(_strip(label, near, f"the {said} training image of each sample of {what}"))
    return figure(_caption(entry, setting), "".join(rows) + _copies(setting))


def _copies(setting: Setting) -> str:
    """The share of copies in words, where it was measured."""
    score = setting.score
    if score is None or score.measures.copies is None:
        return ""
    return (
        f'<p class="soft">{percent(score.measures.copies)} of '
        f"{count(min(score.samples, ASKED), 'sample')} lie as near to a training image as 1 % of "
        "training images lie to another: about 1 % is what fresh images give.</p>\n"
    )


def _caption(entry: Entry, setting: Setting) -> str:
    return f"{entry.who.label} <small>{escape(setting.way)}</small>"


def _grids(figures: Sequence[str], names: Sequence[str], spec: SampleSpec) -> str:
    """Figures of strips beside each other, as wide as their names and pixels ask for."""
    width = spec.shape[2]
    # every pixel is to be seen, few of them enlarged
    least = COLUMNS * (width + gap(width)) * (2 if width <= 16 else 1) + 100
    sizes = f"--name: min(5rem, {max(map(len, names))}ch); --least: max(17rem, {least}px)"
    return f'<div class="grids" style="{sizes}">\n{"".join(figures)}</div>\n'


def _class_name(spec: SampleSpec, label: int) -> str:
    return spec.class_names[label] if spec.class_names else str(label)


def _strip(label: str, images: UInt8[Tensor, "n c h w"], described: str) -> str:
    # a browser that shrinks larger images had better smooth them
    kind = "pixels" if images.shape[-1] <= 32 else "smooth"
    picture = f'<img class="{kind}" src="{strip(images)}" alt="{escape(described)}">'
    return f'<div class="strip"><span class="name">{label}</span>{picture}</div>\n'


def _labels(labels: Sequence[str], width: int) -> str:
    """Headings over the columns, as far apart as the images of a strip."""
    if not labels:
        return ""
    apart = 100 * gap(width) / (COLUMNS * (width + gap(width)) - gap(width))
    cells = "".join(f"<span>{escape(label)}</span>" for label in labels)
    heading = f'<div class="labels" style="column-gap:{apart:.3f}%">{cells}</div>'
    return f'<div class="strip" aria-hidden="true"><span></span>{heading}</div>\n'
