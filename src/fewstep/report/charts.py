"""Charts of a report: distance against cost per image, and the course of training."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from fewstep.formatting import duration, quantity
from fewstep.report.exhibits import StyledExhibit, training_lines, training_seconds
from fewstep.report.ranking import Ranking, Row, front
from fewstep.report.rendering import render
from fewstep.report.svg import LOOKS, Line, Look, chart, wide
from fewstep.scores import Score, score_from

POINTS = 300  # points of a curve: longer ones are averaged, which keeps the file small


class Figure(NamedTuple):
    """A chart with its caption and legend."""

    title: str
    note: str
    legend: Sequence[tuple[Look, str]]
    svg: Markup


def quality(ranking: Ranking, *, key: str) -> Markup:
    """Distance against network evaluations, and against time on each device."""
    figures = [
        _quality(
            ranking, ranking.rows, "network evaluations per image", "network evaluations",
            lambda s: float(s.evaluations), base=2, key=f"{key}-calls",
        )
    ]  # fmt: skip
    for i, device in enumerate(ranking.devices):
        rows = [row for row in ranking.rows if row.score.device == device]
        figures.append(
            _quality(
                ranking, rows, "milliseconds per image", f"time, batch 1, {device}",
                lambda s: 1000 * s.seconds_per_image, key=f"{key}-time-{i}",
            )
        )  # fmt: skip
    legend = [
        (entry.look, f"{entry.exhibit.name} · {sampler}{' (hollow)' if i else ''}")
        for entry, own in ranking.by_entry.items()
        for i, sampler in enumerate(_samplers(own))
    ]
    return render("quality.html.j2", ranking=ranking, figures=figures, legend=legend)


def _quality(
    ranking: Ranking,
    rows: Iterable[Row],
    x_label: str,
    cost_name: str,
    cost: Callable[[Score], float],
    *,
    key: str,
    base: int | None = None,
) -> Figure:
    """A chart of distance against `cost`, with one line per entry and sampler."""
    rows = list(rows)
    distance = ranking.protocol.distance.partition(" (")[0]
    lines: list[Line] = []
    for entry, own in ranking.by_entry.items():
        # samplers of all rows, so that each has the same marker in every chart
        for i, sampler in enumerate(_samplers(own)):
            line = [r for r in rows if r.entry is entry and r.score.sampler_text == sampler]
            line.sort(key=lambda r: (r.score.evaluations, r.score.frechet))
            if line:
                points = [(cost(r.score), r.score.frechet) for r in line]
                spans = [r.interval for r in line]
                lines.append(Line(points, entry.look, dashed=i > 0, spans=spans))
    points = [point for line in lines for point in line.points]
    svg = chart(
        lines,
        key=key,
        describe=f"{distance} against {cost_name}; the table has the numbers",
        x_label=x_label,
        y_label=distance,
        x_base=base or (10 if wide([x for x, _ in points]) else None),
        level=ranking.goal.score.frechet if ranking.goal else None,
        front=front(points),
    )
    return Figure(f"Against {cost_name}", "", [], svg)


def _samplers(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.score.sampler_text for row in rows))


def training(entries: Sequence[StyledExhibit]) -> Markup:
    """Charts of losses and distances during training, for each entry with a training log."""
    figures = [
        figure
        for i, entry in enumerate(entries)
        for figure in (_losses(entry, key=f"loss-{i}"), _scores(entry, key=f"course-{i}"))
        if figure
    ]
    return render("training.html.j2", figures=figures) if figures else Markup()


def _losses(entry: StyledExhibit, *, key: str) -> Figure | None:
    lines = training_lines(entry.exhibit.progress)
    names = dict.fromkeys(name for line in lines for name in line if name.endswith("/loss"))
    if not names:
        return None
    looks = [entry.look, *(look for look in LOOKS if look != entry.look)]
    curves: list[Line] = []
    legend: list[tuple[Look, str]] = []
    for name, look in zip(names, looks, strict=False):
        curves += curve([(line["step"], line[name]) for line in lines if name in line], look)
        legend.append((look, name.removesuffix("/loss")))
    cost = f"{lines[-1]['images']:,} images in {duration(training_seconds(entry.exhibit.progress))}"
    svg = chart(
        curves,
        key=key,
        describe=f"Training loss of {entry.exhibit.name} against steps",
        x_label="step",
        y_label="loss",
    )
    return Figure(entry.exhibit.name, cost, legend if len(legend) > 1 else [], svg)


def _scores(entry: StyledExhibit, *, key: str) -> Figure | None:
    """Distances measured during training, one line per step count."""
    rows: dict[int, list[tuple[int, Row]]] = {}
    for line in entry.exhibit.progress:
        if "score" in line:
            row = Row(entry, score_from(line["score"]))
            rows.setdefault(row.score.steps, []).append((line["step"], row))
    if not rows:
        return None
    looks = dict(zip(rows, LOOKS * len(rows), strict=False))
    lines = [
        Line(
            [(float(step), row.score.frechet) for step, row in line],
            looks[steps],
            spans=[row.interval for _, row in line],
        )
        for steps, line in rows.items()
    ]
    svg = chart(
        lines,
        key=key,
        describe=f"Fréchet distance of {entry.exhibit.name} during training",
        x_label="step",
        y_label="Fréchet distance",
    )
    legend = [(looks[steps], quantity(steps, "step")) for steps in rows]
    return Figure(entry.exhibit.name, "measured during training", legend, svg)


def curve(points: Sequence[tuple[float, float]], look: Look) -> list[Line]:
    """A noisy curve as two lines: the values (faint), and their moving average over 5 % of them."""
    # groups of equal size, because the size changes the noise of the means
    size = -(-len(points) // POINTS)
    groups = np.split(np.array(points), range(size, len(points), size))
    x, y = np.array([group.mean(axis=0) for group in groups]).T
    window = np.ones(2 * (len(y) // 40) + 1)
    counts = np.convolve(np.ones(len(y)), window, "same")  # a mean at the ends is of fewer values
    mean = np.convolve(y, window, "same") / counts
    raw = list(zip(x.tolist(), y.tolist(), strict=True))
    smooth = list(zip(x.tolist(), mean.tolist(), strict=True))
    return [Line(raw, look, faint=True, markers=False), Line(smooth, look, markers=False)]
