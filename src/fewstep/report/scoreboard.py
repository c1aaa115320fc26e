"""Scores side by side, as HTML: sentences, figures, a table and a plot.

Scores are compared only within one protocol: sample count, extractor with its hash, reference set.
Every number of the text is computed from the scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

from fewstep.evaluation import Score
from fewstep.report.plots import LOOKS, YARDSTICK, Line, Look, chart, figure, mark, wide


@dataclass(frozen=True, eq=False)
class Contender:
    """Who is scored; the one that is drawn as the yardstick is what the others are measured by."""

    name: str
    look: Look
    parameters: int
    scores: Sequence[Score]

    @property
    def is_yardstick(self) -> bool:
        return self.look is YARDSTICK

    @property
    def label(self) -> str:
        """The name behind its marker."""
        return f"{mark(self.look)} {escape(self.name)}"


class Row(NamedTuple):
    """One score, and whose it is."""

    who: Contender
    score: Score


def best(rows: Iterable[Row]) -> Row | None:
    """The smallest distance; of equals, the one with fewer evaluations."""
    return min(rows, key=lambda r: (r.score.frechet, r.score.evaluations), default=None)


def quickest(rows: Iterable[Row]) -> Row | None:
    """The fewest evaluations; of equals, the one with the smaller distance."""
    return min(rows, key=lambda r: (r.score.evaluations, r.score.frechet), default=None)


@dataclass(frozen=True)
class Ranking:
    """Rows of one protocol."""

    rows: Sequence[Row]

    @property
    def protocol(self) -> Score:
        """Any of the scores: they agree in samples, extractor and reference."""
        return self.rows[0].score

    @property
    def yardstick(self) -> list[Row]:
        return [row for row in self.rows if row.who.is_yardstick]

    @property
    def students(self) -> list[Row]:
        return [row for row in self.rows if not row.who.is_yardstick]

    @property
    def by_contender(self) -> dict[Contender, list[Row]]:
        whose: dict[Contender, list[Row]] = {}
        for row in self.rows:
            whose.setdefault(row.who, []).append(row)
        return whose


def rank(contenders: Iterable[Contender]) -> list[Ranking]:
    """All scores, those of one protocol together, in the order of their first appearance."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for who in contenders:
        for score in who.scores:
            groups.setdefault(protocol(score), []).append(Row(who, score))
    return [Ranking(rows) for rows in groups.values()]


def protocol(score: Score) -> tuple[object, ...]:
    """What must be equal for two scores to be compared."""
    return score.samples, score.extractor, score.extractor_hash, score.reference


def sentences(ranking: Ranking) -> list[str]:
    """What the table says, in words."""
    first = quickest(ranking.students)
    if first is None:
        top = best(ranking.rows)
        assert top
        return [f"{_named(top)} comes closest to the data{_figures(top)}."]
    told = [f"{_named(first)} needs {_cost(first)} for an image{_figures(first)}."]
    top = best(ranking.students)
    assert top
    goal, naive = best(ranking.yardstick), quickest(ranking.yardstick)
    if goal and naive:
        told.append(
            f"That is <b>{_ratio(first, goal)}</b> the {escape(goal.who.name)}’s best of "
            f"{number(goal.score.frechet)}, which takes {_cost(goal)}, and {_ratio(first, naive)} "
            f"the {number(naive.score.frechet)} that the {escape(naive.who.name)} reaches with "
            f"{count(naive.score.evaluations, 'evaluation')}."
        )
    if top != first:
        told.append(
            f"Closest of all students comes {_named(top)} with {_cost(top)}{_figures(top)}"
            + (f", {_ratio(top, goal)} that best." if goal else ".")
        )
    return told


def _named(row: Row) -> str:
    return f"<b>{escape(row.who.name)}</b>"


def _cost(row: Row) -> str:
    evaluations = count(row.score.evaluations, "network evaluation")
    return f"{evaluations} and {duration(row.score.seconds_per_image)}"


def _figures(row: Row) -> str:
    extractor = escape(row.score.extractor)
    told = f", at a Fréchet distance ({extractor}) of <b>{number(row.score.frechet)}</b>"
    if row.score.accuracy is not None:
        told += f" and with {100 * row.score.accuracy:.1f} % of its samples in the class asked for"
    return told


def _ratio(row: Row, to: Row) -> str:
    return f"{number(row.score.frechet / to.score.frechet)} ×"


def tiles(ranking: Ranking) -> str:
    """The quickest student in a few large figures; nothing without a student and a yardstick."""
    first, goal = quickest(ranking.students), best(ranking.yardstick)
    if not (first and goal):
        return ""
    evaluations = count(first.score.evaluations, "network evaluation")
    faster = goal.score.seconds_per_image / first.score.seconds_per_image
    distance = f"Fréchet distance ({first.score.extractor})"
    told = {
        f"{distance} of {first.who.name} with {evaluations}": number(first.score.frechet),
        f"the distance of the {goal.who.name} at its best": _ratio(first, goal),
        f"the speed of the {goal.who.name} at its best": f"{number(faster)} ×",
    }
    if first.score.accuracy is not None:
        told["of the samples in the class asked for"] = f"{100 * first.score.accuracy:.1f} %"
    inside = "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>\n" for k, v in told.items())
    return f'<dl class="tiles">\n{inside}</dl>\n'


def table(ranking: Ranking, *, key: str) -> str:
    """Every row with all that it cost; the protocol, said once, is the caption."""
    seeds = {row.score.seed for row in ranking.rows}
    goal, top = best(ranking.yardstick), best(ranking.students)
    accurate = any(row.score.accuracy is not None for row in ranking.rows)
    shown = _Columns(accurate=accurate, seeds=len(seeds) > 1, goal=goal)
    about = ranking.protocol
    extractor = escape(about.extractor)
    told = [
        f"{count(about.samples, 'sample')} each against {escape(about.reference)}",
        f"features of {extractor} (<code>{escape(about.extractor_hash[:12])}</code>)",
        *([] if shown.seeds else [f"noise seed {about.seed}"]),
        "time is the median at batch 1",
    ]
    bodies: list[str] = []
    for who, own in ranking.by_contender.items():
        cells = [_cells(row, shown, _status(row, goal, top)) for row in own]
        name = (
            f'<th scope="rowgroup" rowspan="{len(own)}"><span class="who">{who.label}</span></th>'
        )
        lines = [f'<tr class="{_status(row, goal, top)}">' for row in own]
        lines[0] += name
        rows = "\n".join(f"{line}{cell}</tr>" for line, cell in zip(lines, cells, strict=True))
        bodies.append(f"<tbody>\n{rows}\n</tbody>")
    return (
        f'<figure>\n<figcaption id="{key}-caption" class="soft">{"; ".join(told)}.</figcaption>\n'
        f'<div class="scroll" role="region" aria-labelledby="{key}-caption" tabindex="0">\n'
        f'<table aria-labelledby="{key}-caption">\n{_head(shown, extractor)}\n'
        + "\n".join(bodies)
        + "\n</table>\n</div>\n</figure>\n"
    )


class _Columns(NamedTuple):
    """Which columns there is something to say in."""

    accurate: bool
    seeds: bool
    goal: Row | None


def _status(row: Row, goal: Row | None, top: Row | None) -> str:
    return "best" if row is top else "yardstick" if row is goal else ""


def _head(shown: _Columns, extractor: str) -> str:
    names = ["Generator", "Steps", f"Fréchet distance ({extractor})&nbsp;↓"]
    names += [f"Relative to the {escape(shown.goal.who.name)}’s best&nbsp;↓"] if shown.goal else []
    names += ["Accuracy&nbsp;↑"] if shown.accurate else []
    names += ["Network evaluations&nbsp;↓", "Time per image&nbsp;↓", "Parameters"]
    names += ["Seed"] if shown.seeds else []
    cells = "".join(f'<th scope="col">{name}</th>' for name in names)
    return f'<thead><tr>{cells}<th scope="col" class="word">Sampler</th></tr></thead>'


def _cells(row: Row, shown: _Columns, status: str) -> str:
    score = row.score
    cells = [str(score.steps), number(score.frechet)]
    if shown.goal:
        reached = not row.who.is_yardstick and score.frechet <= shown.goal.score.frechet
        ratio = _ratio(row, shown.goal)
        cells.append(f'<span class="reached">✓ {ratio}</span>' if reached else ratio)
    if shown.accurate:
        cells.append("–" if score.accuracy is None else f"{100 * score.accuracy:.1f} %")
    cells += [f"{score.evaluations}", duration(score.seconds_per_image), f"{row.who.parameters:,}"]
    cells += [str(score.seed)] if shown.seeds else []
    best_of = "best student" if shown.goal else "best"
    badges = {"best": best_of, "yardstick": f"{row.who.name}’s best"}
    badge = f' <span class="badge">{escape(badges[status])}</span>' if status else ""
    inside = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'{inside}<td class="word">{escape(score.sampler)}{badge}</td>'


def plots(ranking: Ranking, *, key: str) -> str:
    """Distance against network evaluations and against time, a line a contender and sampler."""
    by_calls: list[Line] = []
    by_time: list[Line] = []
    legend: list[str] = []
    for who, own in ranking.by_contender.items():
        for i, sampler in enumerate(dict.fromkeys(row.score.sampler for row in own)):
            scores = [row.score for row in own if row.score.sampler == sampler]
            calls = sorted((s.evaluations, s.frechet) for s in scores)
            times = sorted((1000 * s.seconds_per_image, s.frechet) for s in scores)
            by_calls.append(Line(calls, who.look, dashed=i > 0))
            by_time.append(Line(times, who.look, dashed=i > 0))
            legend.append(f"{who.label} · {escape(sampler)}{' (hollow)' if i else ''}")
    goal = best(ranking.yardstick)
    dotted = f" The dotted line is the {escape(goal.who.name)}’s best." if goal else ""
    caption = (
        f"Fréchet distance ({escape(ranking.protocol.extractor)}) against what an image costs; "
        f"lower and further left is better.{dotted}"
    )
    spread = wide([x for line in by_time for x, _ in line.points])
    pictures = "".join(
        chart(
            lines,
            key=f"{key}-{base}",
            describe=f"Fréchet distance against {cost}; the table has the numbers",
            x_label=cost,
            y_label="Fréchet distance",
            x_base=base,
            level=goal.score.frechet if goal else None,
        )
        for lines, cost, base in (
            (by_calls, "network evaluations for an image", 2),
            (by_time, "milliseconds for an image", 10 if spread else None),
        )
    )
    return figure(caption, f'<div class="charts">\n{pictures}</div>\n', legend)


def course(name: str, progress: Sequence[Mapping[str, Any]], *, key: str) -> str:
    """The scores taken while `name` was training, a line for each step count; maybe nothing."""
    points: dict[int, list[tuple[int, float]]] = {}
    for told in progress:
        if "score" in told:
            score = told["score"]
            points.setdefault(score["steps"], []).append((told["step"], score["frechet"]))
    if not points:
        return ""
    looks = dict(zip(points, LOOKS * len(points), strict=False))
    lines = [Line(p, looks[steps]) for steps, p in points.items()]
    picture = chart(
        lines,
        key=key,
        describe=f"Fréchet distance of {name} in the course of training",
        x_label="step",
        y_label="Fréchet distance",
    )
    legend = [f"{mark(looks[steps])} {count(steps, 'step')}" for steps in points]
    return figure(f"{escape(name)} <small>measured in training</small>", picture, legend)


def number(value: float) -> str:
    """Three significant digits, no fewer digits than are before the point."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, size, below in (
        ("µs", 1e-6, 999.5),
        ("ms", 1e-3, 999.5),
        ("s", 1, 99.95),
        ("min", 60, 99.95),
    ):
        if seconds < below * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 3600)} h"


def count(n: int, noun: str) -> str:
    """A number of things."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
