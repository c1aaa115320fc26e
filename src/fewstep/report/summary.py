"""What a ranking says, in words and in a few large figures; every number is of the scores.

Nothing is called better than what it is not told apart from.
"""

from collections.abc import Sequence
from html import escape

from fewstep.report.ranking import Ranking, Row, apart, best, quickest, rivals
from fewstep.report.wording import count, duration, interval, listed, number, percent, ratio


def sentences(ranking: Ranking) -> list[str]:
    """The quickest student, how it stands to the baseline, and the closest student."""
    first, top = quickest(ranking.students), best(ranking.students)
    if first is None or top is None:
        return _alone(ranking.rows)
    told = [_quickest(first)]
    told += _beside(first, ranking.baseline)
    equals = [r for r in rivals(first, ranking.students) if _calls(r) == _calls(first)]
    if names := [_named(row) for row in equals if row.who is not first.who]:
        who = f"Between {_named(first)} and {listed(names)}, at as many evaluations, "
        told.append(f"{who}no difference {_unshown(first)}.")
    if top is not first:
        told.append(_closest(top, ranking))
    return told


def _alone(rows: Sequence[Row]) -> list[str]:
    top = best(rows)
    assert top
    if len(rows) == 1:
        return [_quickest(top)]
    closest = f"{_named(top)} comes closest to the data with {_cost(top)}"
    told = [f"{closest}{_figures(top)}{_right(top)}."]
    cheaper = [row for row in rivals(top, rows) if _calls(row) < _calls(top)]
    if cheap := quickest(cheaper):
        told.append(
            f"No difference to the {number(cheap.score.frechet)} that it reaches with "
            f"{count(_calls(cheap), 'evaluation')} {_unshown(top)}."
        )
    return told


def _quickest(row: Row) -> str:
    return f"{_named(row)} needs {_cost(row)} for an image{_figures(row)}{_right(row)}."


def _beside(first: Row, baseline: Sequence[Row]) -> list[str]:
    """How the quickest student stands to the baseline's best and to its quickest."""
    goal, naive = best(baseline), quickest(baseline)
    if not (goal and naive):
        return []
    far = f"the best of {_named(goal)}, {number(goal.score.frechet)}, which takes {_cost(goal)}"
    told = (
        f"That is <b>{_ratio(first, goal)}</b> {far}"
        if apart(first.score, goal.score)
        else f"No difference to {far}, {_unshown(first)}"
    )
    if naive is goal:
        return [f"{told}."]
    far = f"the {number(naive.score.frechet)} that {escape(naive.who.name)} reaches with "
    far += count(_calls(naive), "evaluation")
    if not apart(first.score, naive.score):
        return [f"{told}.", f"No difference to {far} {_unshown(first)}."]
    return [f"{told}, and {_ratio(first, naive)} {far}."]


def _closest(top: Row, ranking: Ranking) -> str:
    goal = best(ranking.baseline)
    against = ""
    if goal:
        against = (
            f", {_ratio(top, goal)} the best of {_named(goal)}"
            if apart(top.score, goal.score)
            else f", not told apart from the best of {_named(goal)}"
        )
    others = rivals(top, ranking.students)
    if not others:
        closest = f"Closest of all students comes {_named(top)} with {_cost(top)}"
        return f"{closest}{_figures(top)}{against}."
    names = [f"{_named(row)} with {count(_calls(row), 'evaluation')}" for row in others]
    return (
        f"The lowest figure of all students is that of {_named(top)} with {_cost(top)}"
        f"{_figures(top)}{against}; but no difference to {listed(names)} {_unshown(top)}."
    )


def _unshown(row: Row) -> str:
    return f"is shown by {count(row.score.samples, 'sample')}"


def _calls(row: Row) -> int:
    return row.score.evaluations


def _named(row: Row) -> str:
    return f"<b>{escape(row.who.name)}</b>"


def _cost(row: Row) -> str:
    evaluations = count(_calls(row), "network evaluation")
    return f"{evaluations} and {duration(row.score.seconds_per_image).replace(' ', '&nbsp;')}"


def _figures(row: Row) -> str:
    score = row.score
    article = "an" if score.distance.startswith("FID") else "a"
    around = interval(score.measures.frechet_low, score.measures.frechet_high)
    told = f", at {article} {escape(score.distance)} of <b>{number(score.frechet)}</b>"
    return f"{told} ({around.replace(' ', '&nbsp;')})" if around else told


def _right(row: Row) -> str:
    accuracy = row.score.accuracy
    if accuracy is None:
        return ""
    return f" and with {percent(accuracy)} of its samples in the class asked for"


def _ratio(row: Row, to: Row) -> str:
    return ratio(row.score.frechet, to.score.frechet)


def tiles(ranking: Ranking) -> str:
    """The quickest student in a few large figures; nothing without a student and a baseline."""
    first, goal = quickest(ranking.students), best(ranking.baseline)
    if not (first and goal):
        return ""
    score, name = first.score, goal.who.name
    around = interval(score.measures.frechet_low, score.measures.frechet_high)
    evaluations = count(_calls(first), "network evaluation")
    distance = f"{score.distance} of {first.who.name} with {evaluations}"
    distance += f"; 95 % interval {around}" if around else ""
    compared = f"the distance of {name} at its best"
    ratio_told = _ratio(first, goal)
    if not apart(score, goal.score):
        compared, ratio_told = f"{compared}: no difference {_unshown(first)}", f"≈ {ratio_told}"
    told = {distance: number(score.frechet), compared: ratio_told}
    if score.device == goal.score.device:
        faster = ratio(goal.score.seconds_per_image, score.seconds_per_image)
        told[f"the speed of {name} at its best"] = faster
    if score.accuracy is not None:
        told["of the samples in the class asked for"] = percent(score.accuracy)
    inside = "".join(f"<div><dt>{escape(k)}</dt><dd>{v}</dd></div>\n" for k, v in told.items())
    return f'<dl class="tiles">\n{inside}</dl>\n'
