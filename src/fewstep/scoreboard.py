"""Scores side by side, as HTML: sentences, figures, a table and a plot.

Scores are compared only within one protocol: sample count, extractor with its hash, reference set.
Every number of the text is computed from the scores.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from fewstep.evaluation import Score
from fewstep.plots import YARDSTICK, Line, Look, chart, figure, mark


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
            f"the {number(naive.score.frechet)} that it reaches itself with "
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
    told = f", at a Fréchet distance of <b>{number(row.score.frechet)}</b>"
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
    told = {
        f"Fréchet distance with {evaluations}, {first.who.name}": number(first.score.frechet),
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
        name = f'<th scope="rowgroup" rowspan="{len(own)}">{who.label}</th>'
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
    names = ["Generator", "Steps", "Sampler", f"Fréchet distance ({extractor}) ↓"]
    names += [f"Over the {escape(shown.goal.who.name)}’s best ↓"] if shown.goal else []
    names += ["Accuracy ↑"] if shown.accurate else []
    names += ["Network evaluations ↓", "Time per image ↓", "Parameters"]
    names += ["Seed"] if shown.seeds else []
    word = {"Sampler": ' class="word"'}
    cells = "".join(f'<th scope="col"{word.get(name, "")}>{name}</th>' for name in names)
    return f"<thead><tr>{cells}</tr></thead>"


def _cells(row: Row, shown: _Columns, status: str) -> str:
    score = row.score
    badges = {"best": "best student", "yardstick": f"{row.who.name}’s best"}
    badge = f' <span class="badge">{escape(badges[status])}</span>' if status else ""
    cells = [str(score.steps), escape(score.sampler) + badge, number(score.frechet)]
    if shown.goal:
        reached = not row.who.is_yardstick and score.frechet <= shown.goal.score.frechet
        ratio = _ratio(row, shown.goal)
        cells.append(f'<span class="reached">✓ {ratio}</span>' if reached else ratio)
    if shown.accurate:
        cells.append("–" if score.accuracy is None else f"{100 * score.accuracy:.1f} %")
    cells += [
        str(score.evaluations),
        duration(score.seconds_per_image),
        f"{row.who.parameters:,}",
    ]
    cells += [str(score.seed)] if shown.seeds else []
    inside = [f"<td>{cell}</td>" for cell in cells]
    inside[1] = f'<td class="word">{cells[1]}</td>'
    return "".join(inside)


def plot(ranking: Ranking, *, key: str) -> str:
    """Distance against network evaluations, a line for each contender and sampler."""
    lines: list[Line] = []
    legend: list[str] = []
    for who, own in ranking.by_contender.items():
        for i, sampler in enumerate(dict.fromkeys(row.score.sampler for row in own)):
            scores = (row.score for row in own if row.score.sampler == sampler)
            x, y = zip(*sorted((s.evaluations, s.frechet) for s in scores), strict=True)
            lines.append(Line(x, y, who.look, dashed=i > 0))
            legend.append(f"{who.label} · {escape(sampler)}{' (hollow)' if i else ''}")
    goal = best(ranking.yardstick)
    dotted = f" The dotted line is the {escape(goal.who.name)}’s best." if goal else ""
    caption = (
        f"Fréchet distance ({escape(ranking.protocol.extractor)}) against network evaluations; "
        f"lower and further left is better.{dotted}"
    )
    picture = chart(
        lines,
        key=key,
        describe="Fréchet distance against network evaluations; the table has the numbers",
        x_label="network evaluations for an image",
        y_label="Fréchet distance",
        log_x=True,
        level=goal.score.frechet if goal else None,
    )
    return figure(caption, picture, legend)


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
