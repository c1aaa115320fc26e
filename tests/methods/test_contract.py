"""What every method must keep to, found by its file: nobody has to write a test for a new one.

A method's defaults must work on the toy within 12 s of CPU; `SETTINGS` holds what differs.
"""

from copy import deepcopy

import pytest
import torch

import toy
from fewstep import methods
from fewstep.trainer import FitConfig, Training

# what a method is tried with on the toy, where it is not its defaults
SETTINGS = {
    # the toy's clock is Flow's, and its 2-D points have no spread of scales to cover
    "consistency": {"clock": "flow", "q": 8.0},
}
# the same method under other settings: (method, settings)
VARIANTS = {}
# how the toy is learnt, where it is not 1,000 steps at 1e-3
FIT = {}
# one-step distance as a share of the teacher's own; a teacher is asked to sample in 32 steps, a
# four-step student in four
BEATS = {"denoise": (32, 0.15), "kstep": (4, 0.35)}
ONE_STEP = (1, 0.35)

every = pytest.mark.parametrize("name", [*methods.names(), *VARIANTS])


def build(name, teacher, **more):
    method, settings = VARIANTS.get(name, (name, {}))
    kind = methods.find(method)
    config = kind.Config(**{**SETTINGS.get(method, {}), **settings, **more})
    return kind(config, deepcopy(teacher.denoiser), toy.SUBJECT, teacher=deepcopy(teacher))


def snapshot(method):
    return {name: value.clone() for name, value in method.state_dict().items()}


def training(method, pairs, **fit):
    config = FitConfig(**{"steps": 6, "batch": 12, "lr": 1e-3, "warmup": 2, **fit})
    return Training(method, toy.batches(method, pairs, batch=config.batch), config)


@every
def test_losses_are_finite_and_only_players_move(name, teacher, pairs):
    method = build(name, teacher)
    before, run = snapshot(method), training(method, pairs)
    for _ in range(3):
        numbers = run.advance().numbers
        assert all(torch.tensor(value).isfinite() for value in numbers.values()), numbers
    moved = {key for key, value in method.state_dict().items() if not value.equal(before[key])}
    theirs = {
        key
        for player in method.players.values()
        for key, value in method.state_dict(keep_vars=True).items()
        if any(value is p for p in player.parameters())
    }
    buffers = {key for key, _ in method.named_buffers()}
    assert moved - buffers <= theirs, "a network that is no player has moved"
    for player, module in method.players.items():
        owned = {id(p) for p in module.parameters()}
        keys = [k for k, v in method.state_dict(keep_vars=True).items() if id(v) in owned]
        assert any(key in moved for key in keys), f"{player} has not moved"


@every
def test_the_teacher_stays_bit_identical(name, teacher, pairs):
    method = build(name, teacher)
    run = training(method, pairs)
    for _ in range(3):
        run.advance()
    kept = method.teacher.state_dict()
    assert all(value.equal(kept[key]) for key, value in teacher.state_dict().items())
    assert all(p.grad is None for p in method.teacher.parameters())


@every
def test_resume_is_bit_identical(name, teacher, pairs):
    whole = training(build(name, teacher), pairs)
    first = training(build(name, teacher), pairs)
    for _ in whole:
        pass
    for _ in range(3):
        first.advance()
    tensors, told = first.state()
    second = training(build(name, teacher), pairs)
    second.restore({key: value.clone() for key, value in tensors.items()}, told)
    for _ in second:
        pass
    wanted, found = whole.state(), second.state()
    assert wanted[1] == found[1]
    assert wanted[0].keys() == found[0].keys()
    assert all(value.equal(found[0][key]) for key, value in wanted[0].items())


@every
def test_micro_batches_give_the_gradients_of_one_batch(name, teacher, pairs):
    gradients = []
    for micro in (0, 5):
        method = build(name, teacher)
        run = training(method, pairs, micro_batch=micro, clip=0.0)
        run.advance()
        gradients.append([p.grad for m in method.players.values() for p in m.parameters()])
    for one, parts in zip(*gradients, strict=True):
        assert (one is None) == (parts is None)
        if one is not None:
            torch.testing.assert_close(parts, one, rtol=1e-3, atol=1e-5)


@every
def test_the_toy_is_learnt(name, teacher, pairs):
    steps, share = BEATS.get(name, ONE_STEP)
    method = build(name, teacher)
    if name == "denoise":
        method = methods.find(name)(method.config, toy.fresh(seed=1), toy.SUBJECT)
    student = toy.trained(method, pairs, **{"steps": 1000, "lr": 1e-3, **FIT.get(name, {})})
    reached, start = toy.distance(student, steps), toy.distance(teacher, 1)
    assert reached < share * start, f"{reached:.4f} of the teacher's one-step {start:.4f}"
