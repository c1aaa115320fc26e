"""The scores of one protocol, as HTML: what a reader compares first, in a table."""

from collections.abc import Callable
from html import escape
from typing import NamedTuple

from fewstep.report.ranking import Ranking, Row, apart, best
from fewstep.report.tables import Cells, Group, Heading, ranged, table, wrapped
from fewstep.report.wording import count, duration, number, percent, ratio


class _Column(NamedTuple):
    heading: Heading
    cell: Callable[[Row], str]


def scores(ranking: Ranking, *, key: str) -> str:
    """Every row with its distance and what an image costs, under what must be known of them."""
    caveats = "".join(f'<p class="caveat">{escape(told)}.</p>\n' for told in ranking.caveats)
    goal = best(ranking.baseline)
    columns = _columns(ranking, goal)
    leaders = ranking.leaders
    groups = [
        Group(
            who.label,
            [
                Cells([c.cell(row) for c in columns], _kind(row, goal, leaders))
                for row in own
            ],
        )
        for who, own in ranking.by_contender.items()
    ]  # fmt: skip
    headings = [Heading("Generator"), *(column.heading for column in columns)]
    return caveats + table(_caption(ranking), headings, groups, key=key)


def _caption(ranking: Ranking) -> str:
    about = ranking.protocol
    seeds = {row.score.seed for row in ranking.rows}
    guided = sorted({f"{row.score.guidance:g}" for row in ranking.rows})
    resize = "" if about.resize == "none" else f", resized by {escape(about.resize)}"
    told = [
        f"{count(about.samples, 'sample')} each against {escape(about.reference)}",
        f"features of {escape(about.extractor)} "
        f"(<code>{escape(about.extractor_hash[:12])}</code>{resize})",
        *([f"noise seed {about.seed}"] if len(seeds) == 1 else []),
        *(["classes asked for as often as in the set"] if about.labels == "as in the set" else []),
        *([f"guidance {', '.join(guided)}"] if guided != ["1"] else []),
        "time is the median at batch 1"
        + (f" on {escape(ranking.devices[0])}" if len(ranking.devices) == 1 else ""),
    ]
    said = [f"{'; '.join(told)}."]
    if any(row.score.measures.frechet_low is not None for row in ranking.rows):
        said.append(
            "Below a distance is its 95 % interval: what other samples of the same weights would "
            "give; another training may differ by more."
        )
    if best(ranking.baseline):
        said.append("≈: no difference is shown, the intervals overlap or are not known.")
    return " ".join(said)


def _columns(ranking: Ranking, goal: Row | None) -> list[_Column]:
    """Those that there is something to say in."""
    rows, distance = ranking.rows, escape(ranking.protocol.distance)
    shown = [
        _Column(Heading("Steps"), lambda row: str(row.score.steps)),
        _Column(Heading(f"{distance}&nbsp;↓"), _distance),
    ]
    if goal:
        relative = f"Relative to {escape(goal.who.name)}’s best&nbsp;↓"
        shown.append(_Column(Heading(relative), lambda row: _relative(row, goal)))
    if any(row.score.accuracy is not None for row in rows):
        shown.append(_Column(Heading("Accuracy&nbsp;↑"), _accuracy))
    shown += [
        _Column(Heading("Network evaluations&nbsp;↓"), lambda row: str(row.score.evaluations)),
        _Column(
            Heading("Time per image&nbsp;↓"), lambda row: duration(row.score.seconds_per_image)
        ),
    ]
    if len(ranking.devices) > 1:
        shown.append(_Column(Heading("Timed on", words=True), _device))
    if len({row.score.seed for row in rows}) > 1:
        shown.append(_Column(Heading("Seed"), lambda row: str(row.score.seed)))
    leaders = ranking.leaders
    sampler = _Column(
        Heading("Sampler", words=True),
        lambda row: escape(row.score.sampler) + _badge(row, goal, leaders),
    )
    return [*shown, sampler]


def _distance(row: Row) -> str:
    told = row.score.measures
    return ranged(number(told.frechet), told.frechet_low, told.frechet_high)


def _device(row: Row) -> str:
    return wrapped(escape(row.score.device))


def _accuracy(row: Row) -> str:
    return "–" if row.score.accuracy is None else percent(row.score.accuracy)


def _relative(row: Row, goal: Row) -> str:
    told = ratio(row.score.frechet, goal.score.frechet)
    if row is goal:
        return told
    if not apart(row.score, goal.score):
        return f"≈ {told}"
    beats = not row.who.is_yardstick and row.score.frechet < goal.score.frechet
    return f'<span class="reached">✓ {told}</span>' if beats else told


def _kind(row: Row, goal: Row | None, leaders: list[Row]) -> str:
    return "best" if row in leaders else "baseline" if row is goal else ""


def _badge(row: Row, goal: Row | None, leaders: list[Row]) -> str:
    if row in leaders:
        said = "among the best" if len(leaders) > 1 else "best student" if goal else "best"
    elif row is goal:
        said = "its best"
    else:
        return ""
    return f' <span class="badge">{said}</span>'
