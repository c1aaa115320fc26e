"""Scores side by side, and what their comparison may claim.

Only scores of one evaluation protocol are compared, and one is called better than another only
if their 95 % intervals do not overlap.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fewstep.report.exhibits import Entry
from fewstep.scores import Score


class Row(NamedTuple):
    """One score of an entry."""

    entry: Entry
    score: Score

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the distance, if it is known."""
        low, high = self.score.measures.frechet_low, self.score.measures.frechet_high
        return None if low is None or high is None else (low, high)

    def differs(self, other: "Row") -> bool:
        """Whether both intervals are known and do not overlap."""
        a, b = self.interval, other.interval
        return a is not None and b is not None and (a[1] < b[0] or b[1] < a[0])

    def rivals(self, rows: Iterable["Row"]) -> list["Row"]:
        """The other rows whose distance is not shown to differ from this one."""
        return [other for other in rows if other is not self and not self.differs(other)]


def best(rows: Iterable[Row]) -> Row | None:
    """The row with the smallest distance; among equals, with the fewest evaluations."""
    return min(rows, key=lambda r: (r.score.frechet, r.score.evaluations), default=None)


def fastest(rows: Iterable[Row]) -> Row | None:
    """The row with the fewest network evaluations; among equals, with the smallest distance."""
    return min(rows, key=lambda r: (r.score.evaluations, r.score.frechet), default=None)


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of points (cost, distance), cheapest first."""
    unbeaten: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not unbeaten or y < unbeaten[-1][1]:
            unbeaten.append((x, y))
    return unbeaten


@dataclass(frozen=True)
class Ranking:
    """All rows of one protocol, at least one."""

    rows: Sequence[Row]

    @property
    def protocol(self) -> Score:
        """The first score: all of them have the same protocol."""
        return self.rows[0].score

    @property
    def baseline(self) -> list[Row]:
        return [row for row in self.rows if row.entry.exhibit.baseline]

    @property
    def students(self) -> list[Row]:
        return [row for row in self.rows if not row.entry.exhibit.baseline]

    @property
    def goal(self) -> Row | None:
        """The baseline's best row, with which all others are compared."""
        return best(self.baseline)

    @property
    def leaders(self) -> list[Row]:
        """The student with the smallest distance and its rivals; empty if its interval is
        unknown."""
        top = best(self.students)
        return [top, *top.rivals(self.students)] if top and top.interval else []

    @property
    def by_entry(self) -> dict[Entry, list[Row]]:
        rows: dict[Entry, list[Row]] = {}
        for row in self.rows:
            rows.setdefault(row.entry, []).append(row)
        return rows

    @property
    def devices(self) -> list[str]:
        """The devices of the time measurements; times of different devices do not compare."""
        return list(dict.fromkeys(row.score.device for row in self.rows))

    @property
    def caveats(self) -> list[str]:
        return list(dict.fromkeys(caveat for row in self.rows for caveat in row.score.caveats))


def rank(entries: Iterable[Entry]) -> list[Ranking]:
    """All scores, grouped by protocol, in the order of their first appearance."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for entry in entries:
        for score in entry.exhibit.scores:
            groups.setdefault(score.protocol, []).append(Row(entry, score))
    return [Ranking(rows) for rows in groups.values()]
