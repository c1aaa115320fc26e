import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analytic import PROCESSES
from fewstep.process import VE, VP, Cosine, Flow, LinearBetas, Process, Table

names = [f"{type(p).__name__}{i}" for i, p in enumerate(PROCESSES)]
every = pytest.mark.parametrize("process", PROCESSES, ids=names)


@every
@given(t=st.floats(0.001, 0.999))
@settings(max_examples=30, deadline=None)
def test_time_inverts_the_ratio(process, t):
    exact = torch.tensor([t], dtype=torch.float64)
    assert float(process.time(process.ratio(exact))) == pytest.approx(t, abs=1e-9)


@every
def test_ratio_grows_with_time_and_scales_stay_in_bounds(process):
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    assert (process.ratio(t).diff() > 0).all()
    for dtype in (torch.float32, torch.float64):
        assert (process.alpha(t.to(dtype)) >= 0).all()
        assert (process.sigma(t.to(dtype)) >= 0).all()


@every
def test_rates_agree_with_finite_differences(process):
    # off the knots of tables, at which the slope jumps
    t = torch.linspace(0.0123, 0.9877, 57, dtype=torch.float64)
    h = 1e-6
    for scale, rate in zip((process.alpha, process.sigma), process.rates(t), strict=True):
        torch.testing.assert_close(
            rate, (scale(t + h) - scale(t - h)) / (2 * h), rtol=1e-5, atol=1e-6
        )


@every
def test_closed_form_rates_are_those_of_differentiation(process):
    # with both ends, and with knots of the tables
    random = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.cat([torch.linspace(0, 1, 100, dtype=torch.float64), random])
    assert type(process).rates is not Process.rates
    for actual, expected in zip(process.rates(t), Process.rates(process, t), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every
def test_closed_form_rates_are_exact_in_float32_too(process):
    # off the knots of tables, whose positions are rounded by up to 3e-5 of their distance; the
    # truth is in float64, as 1 − alpha² of differentiation in float32 loses digits near 0
    t = torch.linspace(0.000615, 0.998765, 101)
    truth = Process.rates(process, t.double())
    for actual, expected in zip(process.rates(t), truth, strict=True):
        torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-6)


def test_rates_can_be_differentiated_themselves():
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    for process in PROCESSES:
        for i in range(2):
            slope = torch.func.jvp(lambda t, p=process, i=i: p.rates(t)[i], (t,), (t * 0 + 1,))[1]
            h = 1e-6
            expected = (process.rates(t + h)[i] - process.rates(t - h)[i]) / (2 * h)
            if not isinstance(process, Table | LinearBetas):  # whose rates jump at knots
                torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-5)
            assert slope.isfinite().all()


@every
def test_a_sample_starts_at_sigma_times_the_noise(process):
    noise, t = torch.randn(3, 2, 4), torch.tensor([0.2, 0.5, 0.9])
    expected = torch.stack([process.sigma(t[i]) * noise[i] for i in range(3)])
    torch.testing.assert_close(process.start(noise, t), expected)
    torch.testing.assert_close(process.start(noise, 0.5)[1], expected[1])


@every
def test_finite_in_float32_on_the_open_span(process):
    t = torch.linspace(1e-6, 1 - 1e-6, 4001)
    for values in (process.alpha(t), process.sigma(t), process.ratio(t), *process.rates(t)):
        assert values.isfinite().all()


def test_ends():
    one, inf = torch.tensor(1.0), torch.tensor(math.inf)
    assert Flow().time(inf) == 1 and Flow().time(torch.tensor(0.0)) == 0
    assert Cosine().alpha(one) == 0 and Cosine().time(inf) == 1
    assert VP().time(inf) == 1 and VE().time(torch.tensor(1e9)) == 1
    assert Flow().alpha(one) == 0 and Flow().sigma(torch.tensor(0.0)) == 0


def test_time_keeps_its_precision_at_small_ratios():
    ratio = torch.tensor([1e-6], dtype=torch.float32)
    for process in (Flow(), VE(), Cosine()):
        exact = process.time(ratio.double())
        torch.testing.assert_close(process.time(ratio).double(), exact, rtol=1e-6, atol=0)
    # VP: t ≈ r²/b₀ there; the naive root would lose it all
    assert float(VP().time(torch.tensor(1e-3))) == pytest.approx(1e-6 / 0.1, rel=1e-3)


def test_vp_matches_its_integral_written_out():
    t = 0.37
    integral = 0.1 * t + 0.5 * 19.9 * t * t
    assert float(VP().alpha(torch.tensor(t))) == pytest.approx(math.exp(-integral / 2), rel=1e-6)
    assert float(VP().sigma(torch.tensor(t))) == pytest.approx(
        math.sqrt(1 - math.exp(-integral)), rel=1e-6
    )


def test_table_is_ddpm_at_its_knots():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        t = (torch.arange(1000, dtype=torch.float64) / 999).to(dtype)
        table = LinearBetas()
        torch.testing.assert_close(table.alpha(t).double(), bars.sqrt(), rtol=tolerance, atol=0)
        torch.testing.assert_close(
            table.sigma(t).double(), (1 - bars).sqrt(), rtol=2 * tolerance, atol=0
        )
    assert float(table.ratio(torch.tensor(1.0))) == pytest.approx(157.4, abs=0.1)


def test_table_rates_at_knots_are_right_hand_ones():
    table = Table((0.9, 0.6, 0.2, 0.05))
    for dtype in (torch.float32, torch.float64):
        knots = torch.tensor([0, 1, 2], dtype=dtype) / 3
        h = 1e-3
        for scale, rate in zip((table.alpha, table.sigma), table.rates(knots), strict=True):
            right = (scale(knots + h) - scale(knots)) / h
            torch.testing.assert_close(rate, right, rtol=5e-3, atol=5e-3)


def test_table_refuses_what_is_no_schedule():
    for values in ((0.5,), (0.5, 0.6), (1.0, 0.5), (0.5, 0.0)):
        with pytest.raises(ValueError, match="alphas_cumprod"):
            Table(values)


def test_at_shapes_a_batch_of_32_against_32_pixels():
    x = torch.zeros(32, 3, 32, 32)
    t = torch.linspace(0, 1, 32)
    alpha, sigma = Flow().at(t, like=x)
    assert alpha.shape == sigma.shape == (32, 1, 1, 1)
    x_t = Flow().add_noise(torch.ones_like(x), x, t)
    torch.testing.assert_close(x_t[5], torch.full((3, 32, 32), float(1 - t[5])))


@pytest.mark.parametrize("shape", [(31,), (32, 1), (1,)])
def test_at_refuses_times_that_are_not_one_a_row(shape):
    with pytest.raises(ValueError, match="32 rows"):
        Flow().at(torch.zeros(shape), like=torch.zeros(32, 3, 32, 32))


def test_coefficients_are_float32_or_better():
    for dtype, wanted in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        alpha, _ = VP().at(0.3, like=torch.zeros(2, 3, dtype=dtype))
        assert alpha.dtype == wanted
    # a number is not rounded to float32 on its way to a float64 batch
    assert float(Flow().at(0.1, like=torch.zeros(1, 1, dtype=torch.float64))[1]) == 0.1
