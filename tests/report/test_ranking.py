from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.report.ranking import Row, best, fastest, front, rank
from fewstep.report.svg import BASELINE, LOOKS
from report.examples import entry, score


def entries(teacher, *students):
    return [
        entry("teacher", BASELINE, teacher),
        *(entry(f"s{i}", LOOKS[i], scores) for i, scores in enumerate(students)),
    ]


def test_only_scores_of_one_protocol_are_ranked_together():
    others = [{"samples": 200}, {"extractor": "e"}, {"extractor_hash": "cd"}, {"reference": "r"},
              {"resize": "clean-bicubic"}]  # fmt: skip
    teacher = [score(1, 9.0), *(score(1, 1.0, **other) for other in others)]
    rankings = rank(entries(teacher, [score(1, 2.0, seed=5, device="another")]))
    assert [len(ranking.rows) for ranking in rankings] == [2, 1, 1, 1, 1, 1]
    for ranking in rankings:
        assert len({row.score.protocol for row in ranking.rows}) == 1
    assert rankings[0].devices == ["1 CPU thread (i386)", "another"]


def test_best_and_fastest_break_ties():
    rows = rank(entries([], [score(4, 2.0), score(2, 2.0), score(2, 3.0), score(8, 2.5)]))[0].rows
    assert best(rows) == rows[1] == fastest(rows)
    assert best([]) is None and fastest([]) is None


bounds = st.one_of(st.none(), st.integers(0, 5))


@given(bounds, bounds, bounds, bounds)
def test_intervals_differ_if_known_and_without_a_common_point(a, b, c, d):
    one, other = (
        Row(None, replace(s, measures=replace(s.measures, frechet_low=low, frechet_high=high)))
        for s, low, high in ((score(1, 1.0), a, b), (score(1, 2.0), c, d))
    )
    if None in (a, b, c, d):
        assert not one.differs(other)
    elif a <= b and c <= d:
        assert one.differs(other) == (not set(range(a, b + 1)) & set(range(c, d + 1)))
    assert one.differs(other) == other.differs(one)


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_what_nobody_beats_in_both(points):
    def beaten(p):
        return any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)

    assert front(points) == sorted({p for p in points if not beaten(p)})


@pytest.mark.parametrize(("spread", "names"), [(0.1, ["s0"]), (0.6, ["s0", "s1"]), (None, None)])
def test_leaders_are_the_closest_and_all_its_rivals(spread, names):
    both = entries([score(1, 0.1)], *([score(1, f, spread=spread)] for f in (1.0, 2.0, 3.0)))
    (ranking,) = rank(both)
    assert [row.entry.exhibit.name for row in ranking.leaders] == (names or [])
    assert ranking.rows[0].rivals(ranking.rows) == ranking.students
    assert rank(entries([score(1, 0.1)]))[0].leaders == []
