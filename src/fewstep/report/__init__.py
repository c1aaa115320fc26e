"""One HTML file that shows generators side by side: scores, pictures, curves, how to make them.

It stands alone: pictures are inside, nothing is fetched, nothing runs. Equal inputs give equal
bytes on one machine.
"""

import json
import platform
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from fewstep import __version__
from fewstep.errors import InputError
from fewstep.evaluation import Score, generate, parameters
from fewstep.generator import Generator, Subject
from fewstep.images import to_uint8
from fewstep.report import scoreboard
from fewstep.report.plots import LOOKS, YARDSTICK, Line, chart, curve, figure, gap, mark, strip
from fewstep.report.scoreboard import Contender, Ranking, count, duration, number
from fewstep.runs import Run, load, weights_hash
from fewstep.sampling import describe_step, named_step, noise_from_seeds

COLUMNS = 10  # images in a row
SEED = 0
UNSCORED_STEPS = (1, 4, 16)  # what to show of a generator that was not measured


@dataclass(frozen=True)
class Exhibit:
    """One generator of the comparison, and all that is known of it."""

    name: str
    """The first one called "teacher" is what the others are measured by."""
    generator: Generator
    """Averaged weights."""
    scores: Sequence[Score]
    """Any step counts and samplers; none: pictures only."""
    recipe: str
    """TOML, resolved."""
    progress: Sequence[Mapping[str, Any]]
    """The lines of progress.jsonl."""
    commands: Sequence[str]
    """What was typed to make it."""


class _Entry(NamedTuple):
    exhibit: Exhibit
    who: Contender


class _Setting(NamedTuple):
    """A way of sampling, and its score where there is one."""

    steps: int
    sampler: str
    score: Score | None


def write_report(
    path: Path, exhibits: Sequence[Exhibit], *, title: str, notes: Sequence[str] = ()
) -> None:
    """Write the report of `exhibits`, in their order, to `path`.

    Raises: InputError where there is nothing to show, or the exhibits make different things.
    """
    entries = _entries(exhibits)
    rankings = scoreboard.rank(entry.who for entry in entries)
    told = {
        "Scores": _scores(rankings),
        "Same noise": _same_noise(entries),
        "Samples": _samples(entries),
        "Training": _training(entries),
        "Recipes": "".join(map(_recipe, entries)),
        "Provenance": _provenance(rankings),
    }
    sections = {name: body for name, body in told.items() if body}
    page = string.Template((resources.files("fewstep.report") / "page.html").read_text("utf-8"))
    html = page.substitute(
        title=escape(title),
        lede=_lede(rankings, notes),
        contents="\n".join(f'<a href="#{_id(name)}">{name}</a>' for name in sections),
        sections="\n".join(_section(name, body) for name, body in sections.items()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def report_run(folder: Path | str, command: str) -> None:
    """Write a run folder's own report.html; `command` is what trained it."""
    run = Run(folder)
    progress = run.progress()
    last = progress[-1]["step"] if progress else 0
    exhibit = Exhibit(
        name=run.folder.name,
        generator=load(run.folder),
        # scores of earlier weights are in the curves; these are of the weights that are kept
        scores=[Score(**p["score"]) for p in progress if "score" in p and p["step"] == last],
        recipe=run.recipe_file.read_text(),
        progress=progress,
        commands=[command],
    )
    write_report(run.folder / "report.html", [exhibit], title=run.folder.name)


def _entries(exhibits: Sequence[Exhibit]) -> list[_Entry]:
    if not exhibits:
        raise InputError("a report needs at least one generator to show")
    subjects = {(e.generator.subject.shape, e.generator.subject.classes) for e in exhibits}
    if len(subjects) > 1:
        told = "; ".join(f"{shape} of {classes} classes" for shape, classes in sorted(subjects))
        raise InputError(
            f"the generators make different things ({told}); report them one kind at a time"
        )
    shape = exhibits[0].generator.subject.shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"a report shows grey or colour images (1 or 3, h, w), not {shape}")
    names = [exhibit.name for exhibit in exhibits]
    teacher = names.index("teacher") if "teacher" in names else -1
    looks = iter(LOOKS * len(exhibits))
    return [
        _Entry(
            e,
            Contender(
                e.name,
                YARDSTICK if i == teacher else next(looks),
                parameters(e.generator),
                e.scores,
            ),
        )
        for i, e in enumerate(exhibits)
    ]


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")


def _section(name: str, body: str) -> str:
    key = _id(name)
    return (
        f'<section id="{key}" aria-labelledby="{key}-title">\n'
        f'<h2 id="{key}-title">{name}</h2>\n{body}</section>'
    )


def _lede(rankings: Sequence[Ranking], notes: Sequence[str]) -> str:
    told = ""
    if rankings:
        words = " ".join(scoreboard.sentences(rankings[0]))
        told = f'<div class="lede"><p>{words}</p></div>\n'
    if notes:
        told += '<ul class="notes">' + "".join(f"<li>{escape(n)}</li>" for n in notes) + "</ul>\n"
    return told + (scoreboard.tiles(rankings[0]) if rankings else "")


def _scores(rankings: Sequence[Ranking]) -> str:
    told = ""
    if len(rankings) > 1:
        told = (
            "<p>These scores were taken in different ways (samples, extractor or reference set), "
            "so they are ranked apart: numbers of one table do not compare with another’s.</p>\n"
        )
    for i, ranking in enumerate(rankings):
        words = f"<p>{' '.join(scoreboard.sentences(ranking))}</p>\n" if i else ""
        table = scoreboard.table(ranking, key=f"table-{i}")
        plots = scoreboard.plots(ranking, key=f"quality-{i}") if len(ranking.rows) > 1 else ""
        told += f'<div class="ranking">\n{words}{table}{plots}</div>\n'
    return told


def _settings(entry: _Entry) -> list[_Setting]:
    """Ways of sampling to show: the scored ones, of the yardstick the quickest and the best."""
    generator = entry.exhibit.generator
    if not entry.exhibit.scores:
        own = describe_step(generator.step)["name"]
        return [_Setting(n, own, None) for n in generator.grid.counts or UNSCORED_STEPS]
    rows = scoreboard.rank([entry.who])[0].rows
    ends = (scoreboard.quickest(rows), scoreboard.best(rows))
    scores = [row.score for row in (ends if entry.who.is_yardstick else rows) if row]
    # scored with several seeds, it is still one way of sampling
    return list({(s.steps, s.sampler): _Setting(s.steps, s.sampler, s) for s in scores}.values())


def _featured(entry: _Entry, *, alone: bool) -> _Setting:
    """A student at its quickest; a teacher, or who has no competitors, at its best."""
    settings = _settings(entry)
    if alone or entry.who.is_yardstick:
        return min(settings, key=lambda s: s.score.frechet if s.score else -s.steps)
    return min(settings, key=lambda s: s.score.evaluations if s.score else s.steps)


def _made(
    entry: _Entry, setting: _Setting, samples: int, labels: Sequence[int] | None = None
) -> UInt8[Tensor, "n c h w"]:
    generator = entry.exhibit.generator
    if describe_step(generator.step)["name"] != setting.sampler:
        generator = generator.sampled(step=named_step(setting.sampler))
    made = generate(generator, samples, steps=setting.steps, seed=SEED, labels=labels)
    return torch.cat([images for _, images in made])


def _same_noise(entries: Sequence[_Entry]) -> str:
    subject = entries[0].exhibit.generator.subject
    labels = [_class_name(subject, i % subject.classes) for i in range(COLUMNS) if subject.classes]
    noise = noise_from_seeds([(SEED << 32) + row for row in range(COLUMNS)], subject.shape)
    rows = [_strip("the noise", to_uint8(noise / 2), "The starting noise of each column")]
    for entry in entries:
        for setting in _settings(entry):
            far = f", distance {number(setting.score.frechet)}" if setting.score else ""
            said = f"<small>{_way(setting)}{far}</small>"
            what = f"{entry.exhibit.name}, {_way(setting)}"
            described = f"{what}: {', '.join(labels)}" if labels else what
            images = _made(entry, setting, COLUMNS)
            rows.append(_strip(f"{entry.who.label} {said}", images, described))
    asked = " and is asked for the class above it" if labels else ""
    return (
        f"<p>Each column starts from one noise{asked}; each row is one generator. These are the "
        f"first {COLUMNS} samples of seed {SEED}, not chosen ones.</p>\n"
        f'<div class="same">\n{_labels(labels, subject.shape[2])}{"".join(rows)}</div>\n'
    )


def _samples(entries: Sequence[_Entry]) -> str:
    subject = entries[0].exhibit.generator.subject
    classes = range(min(subject.classes, COLUMNS))
    names = [_class_name(subject, i) for i in classes] or [""] * COLUMNS
    labels = [i for i in classes for _ in range(COLUMNS)] or None
    least = COLUMNS * (subject.shape[2] + gap(subject.shape[2])) + 100  # every pixel is to be seen
    sizes = f"--name: min(5rem, {max(map(len, names))}ch); --least: max(17rem, {least}px)"
    figures: list[str] = []
    for entry in entries:
        setting = _featured(entry, alone=len(entries) == 1)
        images = _made(entry, setting, len(names) * COLUMNS, labels)
        what = f"{entry.exhibit.name}, {_way(setting)}"
        rows = "".join(
            _strip(escape(name), row, f"{what}: {COLUMNS} samples{name and ' of class '}{name}")
            for name, row in zip(names, images.split(COLUMNS), strict=True)
        )
        figures.append(figure(f"{entry.who.label} <small>{_way(setting)}</small>", rows))
    told = ["A row is a class."] if classes else []
    if len(entries) > 1:
        students = any(entry.who.is_yardstick for entry in entries)
        quick = "Students at their quickest, the teacher at its best."
        told.append(quick if students else "Each at its quickest.")
    return (
        f"<p>{' '.join(told)} Seed {SEED}, not chosen.</p>\n"
        f'<div class="grids" style="{sizes}">\n{"".join(figures)}</div>\n'
    )


def _class_name(subject: Subject, label: int) -> str:
    return subject.class_names[label] if subject.class_names else str(label)


def _way(setting: _Setting) -> str:
    return f"{count(setting.steps, 'step')} of {setting.sampler}"


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


def _training(entries: Sequence[_Entry]) -> str:
    figures = "".join(
        _losses(entry, key=f"loss-{i}")
        + scoreboard.course(entry.exhibit.name, entry.exhibit.progress, key=f"course-{i}")
        for i, entry in enumerate(entries)
    )
    return f'<div class="charts">\n{figures}</div>\n' if figures else ""


def _losses(entry: _Entry, *, key: str) -> str:
    lines = [line for line in entry.exhibit.progress if "score" not in line]
    names = dict.fromkeys(name for line in lines for name in line if name.endswith("/loss"))
    if not names:
        return ""
    looks = [entry.who.look, *(look for look in LOOKS if look != entry.who.look)]
    drawn: list[Line] = []
    legend: list[str] = []
    for name, look in zip(names, looks, strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        drawn += curve(points, look)
        legend.append(f"{mark(look)} {escape(name.removesuffix('/loss'))}")
    cost = f"{lines[-1]['images']:,} images in {duration(_seconds(lines))}"
    caption = f"{escape(entry.exhibit.name)} <small>{cost}</small>"
    what = f"Training loss of {entry.exhibit.name} against steps"
    picture = chart(drawn, key=key, describe=what, x_label="step", y_label="loss")
    return figure(caption, picture, legend if len(legend) > 1 else ())


def _seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """How long it trained; the clock starts anew at each resumption."""
    times = [line["seconds"] for line in lines]
    return sum(t for t, following in zip(times, [*times[1:], 0.0], strict=True) if following < t)


def _recipe(entry: _Entry) -> str:
    exhibit = entry.exhibit
    described = json.dumps(exhibit.generator.describe(), indent=2)
    parts = {
        "Commands": ("command", "\n".join(exhibit.commands)),
        "Recipe": ("recipe", exhibit.recipe),
        "Generator": ("generator", described),
        "Weights and description, SHA-256": ("hash", weights_hash(exhibit.generator)),
    }
    inside = "\n".join(
        f'<h3>{name}</h3>\n<pre class="{kind}" tabindex="0">{escape(text.rstrip())}</pre>'
        for name, (kind, text) in parts.items()
        if text
    )
    return f"<details>\n<summary>{entry.who.label}</summary>\n<div>{inside}</div>\n</details>\n"


def _provenance(rankings: Sequence[Ranking]) -> str:
    facts = [
        ("Written by", f"fewstep {__version__}, torch {torch.__version__}"),
        ("On", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
    ]
    for ranking in rankings:
        about = ranking.protocol
        facts += [
            ("Extractor", f"{about.extractor}, {about.extractor_hash}"),
            ("Reference", about.reference),
            ("Samples", f"{about.samples:,} for each score"),
        ]
    inside = "\n".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f'<dl class="facts">\n{inside}\n</dl>\n'
