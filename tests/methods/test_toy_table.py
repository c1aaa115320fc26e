"""The contract's toy for four times as long, and the table of benchmarks/toy.py."""

import pytest

import toy
from fewstep import methods as package
from methods import test_contract as contract

# stages that fill the training fill the longer one too
LONGER = {"progressive": {"phases": (800, 800, 800, 1600)}}
# one-step distance as a share of the teacher's own
SHARE = 0.2
NAMES = [*package.names(), *contract.VARIANTS]


def learnt(name, teacher, pairs, *, longer=1):
    """A method's student, after as many times the contract's steps."""
    settings = LONGER if longer > 1 else {}
    told = {**contract.LEARNING.get(name, {}), **settings.get(name, {})}
    method = contract.build(name, teacher, **told)
    if name == "denoise":  # a teacher's own method starts from nothing
        method = type(method)(method.config, toy.fresh(seed=1), toy.SPEC)
    fit = {**contract.USUAL, **contract.FIT.get(name, {})}
    return toy.trained(method, pairs, **{**fit, "steps": longer * fit["steps"]})


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_minute_brings_one_step_to_a_fifth_of_the_teachers_own_distance(
    name, source, folder, start
):
    steps, _ = contract.BEATS.get(name, contract.ONE_STEP)
    reached = toy.distance(learnt(name, source, folder, longer=4), steps)
    assert reached < SHARE * start, f"{reached:.4f} of the teacher's one-step {start:.4f}"
