"""Schedules of methods follow the number of training steps."""

import math

import pytest

from fewstep.errors import InputError
from fewstep.methods.schedule import check_steps, count_steps, step_ranges


@pytest.mark.parametrize(
    ("lengths", "steps", "ranges"),
    [
        ((1,), 5, [(0, 5)]),
        ((3, 4, 5, 8), 1000, [(0, 150), (150, 350), (350, 600), (600, 1000)]),
        ((0.3, 0.7), 10, [(0, 3), (3, 10)]),
        ((2000, 2500), 9, [(0, 4), (4, 9)]),
        # each has a step, however short
        ((1, 1, 1000, 1, 1), 6, [(0, 1), (1, 2), (2, 4), (4, 5), (5, 6)]),
        ((1000, 1, 1), 3, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_relative_lengths_divide_the_steps(lengths, steps, ranges):
    assert step_ranges(lengths, steps) == ranges


@pytest.mark.parametrize(
    ("lengths", "steps", "problem"),
    [
        *(((1, length), 9, "must be above 0") for length in (0, -1, math.nan, math.inf)),
        ((1, 1, 1), 2, "3 or more"),
    ],
)
def test_impossible_lengths_are_refused(lengths, steps, problem):
    with pytest.raises(InputError, match=problem):
        step_ranges(lengths, steps)


def test_a_setting_below_1_is_a_share():
    assert [count_steps(value, 200) for value in (0, 0.25, 0.999, 1, 30)] == [0, 50, 200, 1, 30]


def test_numbers_of_steps_are_whole():
    for value in (0, 0.5, 1, 1.0, 30):
        check_steps(value, "fit.warmup")
    for value in (-0.1, 1.5, math.nan, math.inf):
        with pytest.raises(InputError, match=f"^fit.warmup is {value};"):
            check_steps(value, "fit.warmup")
