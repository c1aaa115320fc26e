"""Scores side by side: who is compared with whom, and what the comparison may claim.

Scores are compared only within one protocol, and one is called better than another only where
their 95 % intervals are apart.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from fewstep.report.plots import BASELINE, Look, mark
from fewstep.scores import Score


@dataclass(frozen=True, eq=False)
class Contender:
    """Who is scored; the one that is drawn as the baseline is what the others are measured by."""

    name: str
    look: Look
    scores: Sequence[Score]

    @property
    def is_yardstick(self) -> bool:
        return self.look is BASELINE

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


def apart(a: Score, b: Score) -> bool:
    """Whether both intervals are known and do not overlap: only then is a difference shown."""
    a_low, a_high = a.measures.frechet_low, a.measures.frechet_high
    b_low, b_high = b.measures.frechet_low, b.measures.frechet_high
    if a_low is None or a_high is None or b_low is None or b_high is None:
        return False
    return a_high < b_low or b_high < a_low


def rivals(row: Row, rows: Iterable[Row]) -> list[Row]:
    """The others that `row` is not told apart from."""
    return [other for other in rows if other is not row and not apart(row.score, other.score)]


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (cost, distance) that no other equals or beats in both, the cheapest first."""
    unbeaten: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not unbeaten or y < unbeaten[-1][1]:
            unbeaten.append((x, y))
    return unbeaten


@dataclass(frozen=True)
class Ranking:
    """Rows of one protocol."""

    rows: Sequence[Row]

    @property
    def protocol(self) -> Score:
        """Any of the scores: they agree in all that their protocol is."""
        return self.rows[0].score

    @property
    def baseline(self) -> list[Row]:
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

    @property
    def devices(self) -> list[str]:
        """What the times were measured on: those of different ones do not compare."""
        return list(dict.fromkeys(row.score.device for row in self.rows))

    @property
    def caveats(self) -> list[str]:
        return list(dict.fromkeys(told for row in self.rows for told in row.score.caveats))

    @property
    def leaders(self) -> list[Row]:
        """The student with the smallest distance, and those it is not told apart from; nobody
        where intervals are not known."""
        top = best(self.students)
        known = top and top.score.measures.frechet_low is not None
        return [top, *rivals(top, self.students)] if top and known else []


def rank(contenders: Iterable[Contender]) -> list[Ranking]:
    """All scores, those of one protocol together, in the order of their first appearance."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for who in contenders:
        for score in who.scores:
            groups.setdefault(score.protocol, []).append(Row(who, score))
    return [Ranking(rows) for rows in groups.values()]
