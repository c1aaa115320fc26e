"""The page's address: what it says is read back, and what it cannot mean is one line."""

from dataclasses import fields

import pytest

from fewstep.studio.starts import MAX_SEED, Start
from fewstep.studio.state import State, from_query, to_query

EVERYTHING = State(
    view="morph",
    models=("teacher", "a/b,c&d"),
    steps=("4@teacher",),
    label="3",
    prompt="a 猫 & dog",
    negative="blur",
    guidance=1.5,
    seed=7,
    count=16,
    left="teacher",
    right="cm",
    start="7~12:0.25",
    pins=("1", "2~3:0.5"),
    near=0.5,
    corners=4,
    x=0.125,
    y=0.25,
    freedom=0.3,
    model="cm",
    run="r",
    store="s",
    page=3,
    report="r.html",
)


def test_the_default_state_has_an_empty_address():
    assert to_query(State()) == {}
    assert from_query({}) == (State(), [])


def test_every_field_is_read_back():
    for field in fields(State):
        assert getattr(EVERYTHING, field.name) != field.default, field.name
    assert from_query(to_query(EVERYTHING)) == (EVERYTHING, [])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("view", "admin"),
        ("seed", "-1"),
        ("seed", str(MAX_SEED + 1)),
        ("seed", "x"),
        ("seed", "1e400"),
        ("seed", "1" + "0" * 400),
        ("page", "1" + "0" * 400),
        ("steps", "1" + "0" * 400 + "@teacher"),
        ("guidance", "7"),  # beyond the slider
        ("near", "0"),
        ("guidance", "nan"),
        ("guidance", "inf"),
        ("x", "2"),
        ("label", "-3"),
        ("label", "<b>"),
        ("count", "1000000"),
        ("steps", "100000@teacher"),
        ("steps", "x@teacher"),
        ("pins", "../etc"),
        ("start", ""),
        ("page", "0"),
        ("corners", "3"),
        ("nothing", "1"),
    ],
)
def test_what_it_cannot_mean_is_left_out_with_one_line(name, text):
    state, problems = from_query({name: [text], "model": ["kept"]})
    assert state == State(model="kept")
    assert len(problems) == 1 and name in problems[0] and "\n" not in problems[0]


def test_runs_are_named_once_and_at_most_eight():
    assert from_query({"models": ["a", "b", "a"]}) == (State(models=("a", "b")), [])
    state, (problem,) = from_query({"models": list("abcdefghi")})
    assert state == State() and "9 runs" in problem


def test_step_counts_are_those_of_each_model():
    state = State(steps=("4@a", "2@b@c"))
    assert [state.steps_of(name, 9) for name in ("a", "b@c", "d")] == [4, 2, 9]


def test_seeds_stand_in_for_missing_corners():
    state = State(seed=5, pins=("6", "1~2:0.5"))
    starts = [str(start) for start in state.corner_starts(4)]
    assert starts == ["6", "1~2:0.5", "5", "7"]
    assert State(seed=5, start="3").selected_start() == Start(3)
    assert State(seed=5).selected_start() == Start(5)
    assert State(seed=MAX_SEED).corner_starts(2) == [Start(MAX_SEED), Start(0)]
