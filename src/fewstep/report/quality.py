"""Distance against what an image costs, as plots: evaluations, and time on each device."""

from collections.abc import Callable, Iterable
from html import escape

from fewstep.report.plots import Line, chart, figure, wide
from fewstep.report.ranking import Ranking, Row, best, front
from fewstep.scores import Score


def plots(ranking: Ranking, *, key: str) -> str:
    """A line a contender and sampler; a plot for evaluations, and one for the times of a device."""
    goal = best(ranking.baseline)
    name = escape(goal.who.name) if goal else ""
    dotted = f" The dotted line is {name}’s best." if goal else ""
    caption = (
        f"{escape(ranking.protocol.distance)} against what an image costs; lower and further left "
        "is better. The grey staircase joins those that no other matches or beats in both, by "
        f"their figures alone; thin bars are 95 % intervals.{dotted}"
    )
    level = goal.score.frechet if goal else None
    drawn = _panel(
        ranking, ranking.rows, "network evaluations for an image", "network evaluations",
        lambda s: float(s.evaluations), level=level, base=2, key=f"{key}-calls",
    )  # fmt: skip
    for i, device in enumerate(ranking.devices):
        mine = [row for row in ranking.rows if row.score.device == device]
        drawn += _panel(
            ranking, mine, "milliseconds for an image", f"time, batch 1, {device}",
            lambda s: 1000 * s.seconds_per_image, level=level, key=f"{key}-time-{i}",
        )  # fmt: skip
    return figure(caption, f'<div class="charts">\n{drawn}</div>\n', _legend(ranking))


def _panel(
    ranking: Ranking,
    rows: Iterable[Row],
    x_label: str,
    said: str,
    cost: Callable[[Score], float],
    *,
    level: float | None,
    key: str,
    base: int | None = None,
) -> str:
    rows = list(rows)
    distance = ranking.protocol.distance.partition(" (")[0]
    lines: list[Line] = []
    for who, own in ranking.by_contender.items():
        # hollow is the same sampler in every plot, though a plot may lack the other
        for i, sampler in enumerate(_samplers(own)):
            scores = [r.score for r in rows if r.who is who and r.score.sampler == sampler]
            scores.sort(key=lambda s: (s.evaluations, s.frechet))
            if scores:
                points = [(cost(s), s.frechet) for s in scores]
                spans = [(s.measures.frechet_low, s.measures.frechet_high) for s in scores]
                lines.append(Line(points, who.look, dashed=i > 0, spans=spans))
    points = [point for line in lines for point in line.points]
    picture = chart(
        lines,
        key=key,
        describe=f"{distance} against {said}; the table has the numbers",
        x_label=x_label,
        y_label=distance,
        x_base=base or (10 if wide([x for x, _ in points]) else None),
        level=level,
        front=front(points),
    )
    return f"<div><h3>Against {escape(said)}</h3>\n{picture}</div>\n"


def _legend(ranking: Ranking) -> list[str]:
    return [
        f"{who.label} · {escape(sampler)}{' (hollow)' if i else ''}"
        for who, own in ranking.by_contender.items()
        for i, sampler in enumerate(_samplers(own))
    ]


def _samplers(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.score.sampler for row in rows))
