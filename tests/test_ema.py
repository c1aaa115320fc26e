import math

import pytest
import torch
from torch import nn

from fewstep.averaging import Profile, combine, is_due
from fewstep.ema import PowerAverages, follow, halflife_decay, power_exponent


def test_half_of_the_old_average_is_left_after_a_halflife():
    average, source = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 8.0)
    nn.init.constant_(source.weight, 0.0)
    for _ in range(100):
        follow(average, source, decay=halflife_decay(10, 1000))
    assert float(average.weight.detach()) == pytest.approx(4.0, rel=1e-5)


def test_no_halflife_means_no_memory():
    average, source = nn.Linear(2, 2), nn.Linear(2, 2)
    follow(average, source, decay=halflife_decay(10, 0))
    assert torch.equal(average.weight, source.weight)


def test_buffers_are_copied():
    average, source = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    source.running_mean.fill_(3.0)
    follow(average, source, decay=0.9)
    assert average.running_mean.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(("length", "exponent"), [(0.05, 16.97), (0.10, 6.94)])
def test_lengths_have_the_exponents_of_the_paper(length, exponent):
    """Karras et al. 2024, arXiv:2312.02696, section 3.1."""
    e = power_exponent(length)
    assert e == pytest.approx(exponent, abs=5e-3)
    # the standard deviation of the density (e + 1)·tau**e on [0, 1]
    moments = [(e + 1) / (e + 1 + k) for k in (1, 2)]
    assert math.sqrt(moments[1] - moments[0] ** 2) == pytest.approx(length, rel=1e-9)


def follow_power(power, lengths, steps):
    """The averages after each step of weights t**power, where t is the middle of the step."""
    network = nn.Linear(1, 1, bias=False).double()
    averages = PowerAverages(network, lengths)
    history = []
    for step in range(1, steps + 1):
        nn.init.constant_(network.weight, ((step - 0.5) / steps) ** power)
        averages.update(network, step)
        history.append([float(value) for (value,) in averages.values])
    return history


def test_an_average_is_the_integral_over_its_profile():
    lengths = (0.05, 0.1, 0.2)
    for power in (0, 1, 2, 5):
        history = follow_power(power, lengths, 4000)
        for step in (2000, 4000):
            for length, ours in zip(lengths, history[step - 1], strict=True):
                e = power_exponent(length)
                truth = (e + 1) / (e + 1 + power) * (step / 4000) ** power
                assert ours == pytest.approx(truth, rel=1e-5)


def test_snapshots_make_the_average_of_any_length():
    """As those that are tracked during training, within the error of the sum of profiles."""
    steps, count = 4000, 16
    lengths = (0.05, 0.1, 0.06, 0.075, 0.12, 0.15, 0.03)
    due = [step for step in range(1, steps + 1) if is_due(step, steps, count)]
    assert due == [step * steps // count for step in range(1, count + 1)]
    profiles = [Profile(power_exponent(own), step) for step in due for own in lengths[:2]]
    history = {power: follow_power(power, lengths, steps) for power in (1, 3, -0.5)}
    for index, length in enumerate(lengths):
        factors, error = combine(profiles, Profile(power_exponent(length), steps))
        assert sum(factors) == pytest.approx(1, abs=1e-12)
        assert error < (1e-6 if index < 2 else 0.045 if length == 0.03 else 0.012)
        for tracked in history.values():
            snapshots = [value for step in due for value in tracked[step - 1][:2]]
            ours = sum(f * value for f, value in zip(factors, snapshots, strict=True))
            assert ours == pytest.approx(tracked[-1][index], rel=2e-3)


def test_profiles_are_multiplied_in_closed_form():
    a, b = Profile(2.5, 0.8), Profile(7.0, 1.0)
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    densities = [
        (p.exponent + 1) * tau**p.exponent / p.time ** (p.exponent + 1) * (tau <= p.time)
        for p in (a, b)
    ]
    assert a.dot(b) == pytest.approx(float((densities[0] * densities[1]).mean()), rel=1e-5)
    assert a.dot(b) == b.dot(a)


def test_a_short_training_has_a_snapshot_of_every_step():
    assert [step for step in range(1, 6) if is_due(step, 5, 16)] == [1, 2, 3, 4, 5]
