import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.evaluation import Score
from fewstep.report import scoreboard
from fewstep.report.plots import LOOKS, YARDSTICK
from fewstep.report.scoreboard import (
    Contender,
    best,
    count,
    duration,
    number,
    quickest,
    rank,
    sentences,
)


def score(evaluations, frechet, **told):
    known = {"steps": evaluations, "sampler": "transfer", "samples": 100, "extractor": "pixels",
             "extractor_hash": "ab", "reference": "digits", "seed": 0, "accuracy": None,
             "seconds_per_image": 0.002}  # fmt: skip
    return Score(evaluations=evaluations, frechet=frechet, **known | told)


def contenders(teacher, student):
    return [Contender("teacher", YARDSTICK, 10, teacher), Contender("s", LOOKS[0], 20, student)]


def test_only_scores_of_one_protocol_are_ranked_together():
    others = [{"samples": 200}, {"extractor": "e"}, {"extractor_hash": "cd"}, {"reference": "r"}]
    teacher = [score(1, 9.0), *(score(1, 1.0, **other) for other in others)]
    rankings = rank(contenders(teacher, [score(1, 2.0, seed=5)]))
    assert [len(ranking.rows) for ranking in rankings] == [2, 1, 1, 1, 1]
    # the teacher's 1.0 was taken otherwise: the student's 2.0 is better than its 9.0
    table = scoreboard.table(rankings[0], key="k")
    assert "✓ 0.222 ×" in table
    assert '<th scope="col">Seed</th>' in table  # seeds differ: said in each row
    assert "seed" not in scoreboard.table(rankings[1], key="k").replace("noise seed 0", "")


def test_best_and_quickest_break_ties():
    rows = rank(contenders([], [score(4, 2.0), score(2, 2.0), score(2, 3.0), score(8, 2.5)]))[
        0
    ].rows
    assert best(rows) == rows[1] == quickest(rows)
    assert best([]) is None and quickest([]) is None


def test_sentences_without_a_yardstick_or_without_students():
    alone = rank([Contender("a<b", LOOKS[0], 1, [score(1, 2.0), score(4, 1.0)])])[0]
    told = " ".join(sentences(alone))
    assert "<b>a&lt;b</b> needs 1 network evaluation and 2.00 ms" in told
    assert "Closest of all students comes <b>a&lt;b</b> with 4 network evaluations" in told
    assert scoreboard.tiles(alone) == ""
    teacher = rank(contenders([score(1, 2.0), score(4, 1.0)], []))[0]
    assert sentences(teacher) == [
        "<b>teacher</b> comes closest to the data, at a Fréchet distance (pixels) of <b>1.00</b>."
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [(7.418, "7.42"), (5.1, "5.10"), (82.31, "82.3"), (99.949, "99.9"), (99.96, "100"),
     (1234.5, "1,234"), (0.01234, "0.0123"), (0.0, "0.00"), (9.999, "10.0")],
)  # fmt: skip
def test_number(value, said):
    assert number(value) == said


@settings(deadline=None, max_examples=200)
@given(st.floats(1e-3, 1e9))
def test_a_number_is_read_back_within_half_a_percent(value):
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4.2e-4, "420 µs"), (9.994e-4, "999 µs"), (9.996e-4, "1.00 ms"), (0.0123, "12.3 ms"),
     (0.9999, "1.00 s"), (44.0, "44.0 s"), (160.0, "2.67 min"), (9000.0, "2.50 h")],
)  # fmt: skip
def test_duration(seconds, said):
    assert duration(seconds) == said


def test_count():
    assert [count(n, "step") for n in (1, 2, 50_000)] == ["1 step", "2 steps", "50,000 steps"]
