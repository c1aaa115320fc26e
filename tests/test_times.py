import math

import pytest
import torch

from analytic import TABLE, exact
from fewstep.errors import InputError
from fewstep.parametrization import EDM, Eps, V, Velocity
from fewstep.process import VE, VP, Flow
from fewstep.times import FixedGrid, KarrasGrid, LogNormal, Uniform, UniformGrid


def test_uniform_grid_starts_at_the_spans_end_and_steps_evenly():
    assert UniformGrid()(4, exact(Flow(), Velocity())).tolist() == [1, 0.75, 0.5, 0.25]
    times = UniformGrid()(2, exact(Flow(), EDM()))
    low, high = 0.002 / 1.002, 80 / 81
    torch.testing.assert_close(times, torch.tensor([high, (low + high) / 2], dtype=torch.float64))
    assert UniformGrid()(1000, exact(TABLE, Eps(TABLE)))[0] == 1


def test_karras_grid_matches_the_published_values():
    """Karras et al. 2022, eq. 5 with rho = 7, 0.002 … 80, N = 18."""
    sigmas = 80 * KarrasGrid()(18, exact(VE(80.0), EDM()))
    assert sigmas[0] == pytest.approx(80) and sigmas[-1] == pytest.approx(0.002)
    steps = sigmas ** (1 / 7)
    torch.testing.assert_close(steps.diff(), steps.diff().mean().expand(17))
    assert KarrasGrid()(1, exact(VE(80.0), EDM())).tolist() == [1.0]


def test_karras_grid_leaves_out_an_end_without_noise():
    """Heun's slope is infinite there under VP, and multistep's gain."""
    model = exact(VP(), V())
    for steps in (1, 2, 5):
        ratios = VP().ratio(KarrasGrid()(steps, model))
        wanted = VP().ratio(torch.tensor(1.0, dtype=torch.float64)) ** (1 / 7)
        shares = 1 - torch.arange(steps, dtype=torch.float64) / steps
        torch.testing.assert_close(ratios ** (1 / 7), wanted * shares)


def test_karras_grid_needs_a_finite_start():
    with pytest.raises(InputError, match="finite"):
        KarrasGrid()(4, exact(Flow(), Velocity()))


def test_fixed_grid_has_the_counts_it_was_given():
    model, grid = exact(Flow(), Velocity()), FixedGrid(((1.0,), (1.0, 0.4)))
    assert grid.counts == (1, 2)
    assert grid(2, model).tolist() == [1.0, 0.4]
    with pytest.raises(InputError, match="3 steps"):
        grid(3, model)
    with pytest.raises(InputError, match="trained for"):
        FixedGrid(((1.0,),))(1, exact(Flow(), EDM()))


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_refused(steps):
    with pytest.raises(InputError, match="at least 1"):
        UniformGrid()(steps, exact(Flow(), Velocity()))


def test_log_normal_has_its_mean_and_deviation():
    model = exact(VP(), Velocity())  # the span does not cut it there
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    logs = torch.log(model.process.ratio(LogNormal(mean=-1.2, std=1.2).times(u, model)))
    assert float(logs.mean()) == pytest.approx(-1.2, abs=1e-3)
    assert float(logs.std()) == pytest.approx(1.2, abs=2e-3)


def test_log_normal_under_flow_is_logit_normal():
    model = exact(Flow(), Velocity())
    u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    t = LogNormal(mean=0.3, std=0.7).times(u, model)
    wanted = torch.special.ndtri(u) * 0.7 + 0.3
    torch.testing.assert_close(torch.log(t / (1 - t)), wanted)


@pytest.mark.parametrize("density", [Uniform(), LogNormal(mean=2.0, std=3.0), LogNormal()])
@pytest.mark.parametrize("process", [Flow(), VE(), VP(), TABLE])
def test_densities_stay_within_the_span(density, process):
    model = exact(process, EDM())
    low, high = model.span
    t = density.times(torch.linspace(0, 1 - 2**-24, 1001), model)
    assert t.dtype == torch.float32 and t.isfinite().all()
    assert float(t.min()) >= low - 1e-6 and float(t.max()) <= high + 1e-6
    assert (t.diff() >= 0).all()
    if math.isclose(high, 1):
        assert float(t.max()) > 0.1


def test_a_density_that_is_a_point_is_refused():
    with pytest.raises(InputError, match="std is 0.0; it must be a number above 0"):
        LogNormal(std=0.0)
