"""Group scores by evaluation protocol, and find the best ones.

Scores are compared only within one protocol. One score is better than another only if their 95 %
intervals do not overlap.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fewstep.report.exhibits import StyledExhibit
from fewstep.scores import Score


class Row(NamedTuple):
    """One score of an entry."""

    entry: StyledExhibit
    score: Score

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the Fréchet distance; None if it is unknown."""
        low, high = self.score.measures.frechet_low, self.score.measures.frechet_high
        return None if low is None or high is None else (low, high)

    def differs(self, other: "Row") -> bool:
        """Whether both 95 % intervals are known and do not overlap."""
        a, b = self.interval, other.interval
        return a is not None and b is not None and (a[1] < b[0] or b[1] < a[0])

    def rivals(self, rows: Iterable["Row"]) -> list["Row"]:
        """The other rows whose distance does not differ from this one's; see `differs`."""
        return [other for other in rows if other is not self and not self.differs(other)]


def best(rows: Iterable[Row]) -> Row | None:
    """The row with the smallest distance; of equal ones, that with the fewest evaluations."""
    return min(rows, key=lambda r: (r.score.frechet, r.score.evaluations), default=None)


def fastest(rows: Iterable[Row]) -> Row | None:
    """The row with the fewest evaluations; of equal ones, that with the smallest distance."""
    return min(rows, key=lambda r: (r.score.evaluations, r.score.frechet), default=None)


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front of points (cost, distance), in order of cost."""
    pareto: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not pareto or y < pareto[-1][1]:
            pareto.append((x, y))
    return pareto


@dataclass(frozen=True)
class Ranking:
    """The rows of one evaluation protocol, at least one."""

    rows: Sequence[Row]

    @property
    def protocol(self) -> Score:
        """A score from which to read the protocol, which all rows share."""
        return self.rows[0].score

    @property
    def baseline(self) -> list[Row]:
        return [row for row in self.rows if row.entry.exhibit.baseline]

    @property
    def students(self) -> list[Row]:
        return [row for row in self.rows if not row.entry.exhibit.baseline]

    @property
    def goal(self) -> Row | None:
        """The row of the baseline with the smallest distance, with which all others are compared;
        None without a baseline."""
        return best(self.baseline)

    @property
    def leaders(self) -> list[Row]:
        """The student row with the smallest distance, and the student rows that do not differ from
        it. Empty if its interval is unknown."""
        top = best(self.students)
        return [top, *top.rivals(self.students)] if top and top.interval else []

    @property
    def by_entry(self) -> dict[StyledExhibit, list[Row]]:
        rows: dict[StyledExhibit, list[Row]] = {}
        for row in self.rows:
            rows.setdefault(row.entry, []).append(row)
        return rows

    @property
    def devices(self) -> list[str]:
        """The devices on which times were measured; times of different devices are not compared."""
        return list(dict.fromkeys(row.score.device for row in self.rows))

    @property
    def caveats(self) -> list[str]:
        return list(dict.fromkeys(caveat for row in self.rows for caveat in row.score.caveats))


def rank(entries: Iterable[StyledExhibit]) -> list[Ranking]:
    """All scores, grouped by protocol, in the order of their first appearance."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for entry in entries:
        for score in entry.exhibit.scores:
            groups.setdefault(score.protocol, []).append(Row(entry, score))
    return [Ranking(rows) for rows in groups.values()]
