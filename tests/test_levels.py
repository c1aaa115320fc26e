"""Pairs of levels: the published rules, and what a converged student keeps of a Gaussian."""

import math

import pytest
import torch

from fewstep.errors import InputError
from fewstep.levels import DiscreteLevels, EctLevels

ENDS = [0.0, 1e6]


def test_the_doubling_ladder_grows_as_published():
    """iCT: 11, 21, 41, … 1281 in eight equal stretches of 400,000 steps."""
    ladder = DiscreteLevels()
    published = [11, 21, 41, 81, 161, 321, 641, 1281]
    for stretch, count in enumerate(published):
        first, last = 50_000 * stretch, 50_000 * (stretch + 1) - 1
        assert [ladder.count(step / 400_000) for step in (first, last)] == [count, count]
    assert ladder.count(1.0) == 1281


def test_the_root_ladder_is_the_formula():
    """CT: N(k) = ceil(sqrt(k/K·((s1 + 1)² − s0²) + s0²) − 1) + 1, from 2 to 151."""
    ladder = DiscreteLevels(growth="root", first=2, last=150)
    for k in (0, 1, 999, 200_000, 600_001, 800_000):
        root = math.sqrt(k / 800_000 * (151**2 - 4) + 4)
        assert ladder.count(k / 800_000) == math.ceil(root - 1) + 1
    assert (ladder.count(0.0), ladder.count(1.0)) == (2, 151)


@pytest.mark.parametrize("clock", ["ratio", "flow"])
def test_ects_rule_is_the_formula(clock):
    levels = EctLevels(clock=clock, q=4.0, k=8.0, b=1.5, stages=5)
    ratio = torch.tensor([0.01, 0.3, 2.0, 70.0], dtype=torch.float64)
    for progress in (0.4, 0.59):  # the third stage
        upper, lower, gap = levels.around(ratio, progress, ENDS)
        t = ratio if clock == "ratio" else ratio / (1 + ratio)
        r = t * (1 - (1 + 8 / (1 + torch.exp(1.5 * t))) / 4**3)
        torch.testing.assert_close(upper, ratio)
        torch.testing.assert_close(lower, r if clock == "ratio" else r / (1 - r))
        torch.testing.assert_close(gap, t - r)


@pytest.mark.parametrize(
    ("settings", "stages"),
    [
        ({}, 6),
        ({"k": 8.0}, 8),
        ({"q": 256.0, "k": 8.0}, 1),
        ({"q": 4.0}, 3),
        ({"q": 1000.0}, 1),
        ({"q": 2.0, "stages": 3}, 3),
    ],
)
def test_the_stages_are_as_many_as_narrow_the_gap(settings, stages):
    levels = EctLevels(**settings)
    found = [levels.stage(i / 960) for i in range(960)]
    assert sorted(set(found)) == list(range(stages))
    assert {found.count(stage) for stage in range(stages)} == {960 // stages}
    assert levels.stage(1.0) == stages - 1


def relative_gap(levels, steps):
    """The largest (t − r)/t at the last of so many training steps."""
    t = torch.logspace(-4, 2, 400, dtype=torch.float64)
    upper, lower, _ = levels.around(t, (steps - 1) / steps, ENDS)
    return float((1 - lower / upper).max())


@pytest.mark.parametrize("levels", [EctLevels(), EctLevels(k=8.0), EctLevels(q=256.0, k=8.0)])
def test_the_last_gap_is_two_percent_however_short_the_training(levels):
    gaps = {relative_gap(levels, steps) for steps in (20, 320, 640, 400_000)}
    assert len(gaps) == 1 and 0.003 < min(gaps) <= 0.02


def photographs():
    """Variances of photographs of 16×16 pixels, with a spectrum of 1/f².

    Their values have the variance 0.23, nearly all of it in the sum of the three channels.
    """
    f = torch.fft.fftfreq(16, dtype=torch.float64)
    square = f[:, None] ** 2 + f[None] ** 2
    square[0, 0] = (1 / 32) ** 2
    return (3 * 0.23 / square / (1 / square).mean()).flatten()


def kept(levels, progress, counts=(1,), low=1e-3):
    """Share of the variance in samples of 1, 2, … steps of a student that has converged.

    For each eigenvector of the data's covariance with variance v, the student is a factor of its
    input: 1 at no noise, and f(t) = f(r)·E[x_r·x_t]/E[x_t²] = f(r)·(v + r·t)/(v + t²), which is the
    least square loss. Samples start from noise alone; each further step adds noise at its time.
    """
    variances = photographs()

    def factor(t):
        value = torch.ones_like(variances)
        while t > low:
            _, r, _ = levels.around(torch.tensor([t], dtype=torch.float64), progress, ENDS)
            r = float(r) if float(r) > low else 0.0
            value, t = value * (variances + r * t) / (variances + t**2), r
        return value

    def samples(count):
        image = torch.zeros_like(variances)
        for i in range(count):
            t = (1 - i / count) / (i / count) if i else 1000.0  # Flow's times 1 − i/count
            image = factor(t) ** 2 * (image + t**2)
        return float(image.sum() / variances.sum())

    return [samples(count) for count in counts]


def test_a_converged_student_keeps_little_of_a_gaussian_while_the_gap_is_large():
    """The trap of a schedule that ends early: half of the variance is lost at ECT's first stage."""
    levels = EctLevels(k=8.0)
    found = [kept(levels, stage / 8)[0] for stage in (0, 1, 2, 3, 5, 7)]
    assert found == pytest.approx([0.38, 0.66, 0.84, 0.92, 0.98, 0.995], abs=0.01)
    for stage in (1, 2, 3):
        shares = kept(levels, stage / 8, (1, 2, 4, 16))
        assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0] - 0.01
    # without the wider gap at small levels, further steps take nothing
    shares = kept(EctLevels(), 2 / 6, (1, 2, 4, 16))
    assert max(shares) - min(shares) < 0.005


def test_the_defaults_end_as_a_consistency_function():
    shares = kept(EctLevels(), 1.0, (1, 2, 4, 16))
    assert min(shares) > 0.97
    # where r was 0 for all t below 0.66 under q = 2 and one stage
    t = torch.logspace(-2, 2, 50, dtype=torch.float64)
    _, r, _ = EctLevels().around(t, 1.0, ENDS)
    assert (r > 0.97 * t).all()


@pytest.mark.parametrize(
    "levels",
    [EctLevels(), EctLevels(stages=2), EctLevels(k=8.0, stages=3), EctLevels(k=8.0, stages=6)],
)
@pytest.mark.parametrize("spread", [0.1, 0.5, 3.0])
def test_the_share_of_the_variance_is_the_product_over_the_pairs(levels, spread):
    share, t = 1.0, 1e6
    while t > 1e-4:
        _, r, _ = levels.around(torch.tensor([t], dtype=torch.float64), 1.0, ENDS)
        r = float(r) if float(r) > 1e-4 else 0.0
        share, t = share * math.cos(math.atan(t / spread) - math.atan(r / spread)) ** 2, r
    assert levels.variance_share(1.0, ENDS, spread) == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("last", [17, 160, 1280])
def test_discrete_levels_have_the_share_of_their_list(last):
    levels, ends = DiscreteLevels(last=last), [0.002, 80.0]
    rungs = (torch.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), last + 1, dtype=torch.float64)) ** 7
    wanted = torch.cos(torch.atan(rungs / 0.5).diff()).square().prod()
    assert levels.variance_share(1.0, ends) == pytest.approx(float(wanted), abs=2e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"q": value} for value in (1.0, math.nan, math.inf)),
        {"stages": -1},
        *({name: value} for name in ("k", "b") for value in (-1.0, math.nan, math.inf)),
        # float32 cannot tell such levels apart
        {"stages": 20},
        {"q": 1e7, "stages": 1},
    ],
    ids=str,
)
def test_impossible_levels_are_refused(wrong):
    with pytest.raises(InputError, match="method.levels( has q|.[a-z]+ is .*must be)"):
        EctLevels(**wrong)


@pytest.mark.parametrize("wrong", [{"first": 1}, {"first": 20, "last": 10}, {"ratios": (2.0, 1.0)}])
def test_impossible_lists_are_refused(wrong):
    with pytest.raises(InputError, match="method.levels( has first|.first is 1; it must be)"):
        DiscreteLevels(**wrong)
