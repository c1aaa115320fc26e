"""The contract's toy for four times as long."""

import pytest

import toy
from methods.test_contract import BOUNDS, ONE_STEP, every, learn

SHARE = 0.2
"""Of the teacher's own one-step distance."""


@pytest.mark.slow
@every
def test_four_times_the_steps_bring_a_fifth_of_the_teachers_distance(name, source, folder, start):
    steps = 2 if name == "meanflow-teacher" else BOUNDS.get(name, ONE_STEP)[0]
    distance = toy.distance(learn(name, source, folder, longer=4), steps)
    assert distance < SHARE * start, f"{distance:.4f} of the teacher's one-step {start:.4f}"
