"""Grids of others' samplers: diffusers' own timesteps are the truth."""

import json

import pytest
import torch

from analytic import TABLE, exact
from ddpm_folders import scheduler
from fewstep import recipe
from fewstep.errors import InputError
from fewstep.parametrization import EDM, Eps, V, Velocity
from fewstep.process import VE, Flow
from fewstep.sampling import sample
from fewstep.spacing import ShiftedGrid, TableGrid, respace
from fewstep.tables import to_table
from fewstep.times import FixedGrid

# diffusers converts its tables to NumPy in the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
MODEL = exact(TABLE, Eps(TABLE))
SPACINGS = ["leading", "trailing", "linspace"]


def theirs(noise_schedule, steps):
    noise_schedule.set_timesteps(steps)
    # numpy's arange rounds, and diffusers then has a step -1 after the last
    return noise_schedule.timesteps.double()[:steps]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_are_the_timesteps_of_ddim_for_every_count(spacing, offset):
    noise_schedule = scheduler("DDIM", timestep_spacing=spacing, steps_offset=offset)
    grid = TableGrid(spacing=spacing, offset=offset)
    for steps in range(1, 1001 - 501 * offset):  # 501 and more would have a step 1000 with it
        expected = theirs(noise_schedule, steps)
        assert torch.equal(grid.indices(steps), expected), steps
    torch.testing.assert_close(grid(steps, MODEL) * 999, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_times_are_the_timesteps_of_euler(spacing):
    noise_schedule = scheduler("EulerDiscrete", timestep_spacing=spacing)
    grid = TableGrid(spacing=spacing, rounded=False)
    for steps in (*range(1, 1000, 7), 999, 1000):
        torch.testing.assert_close(
            grid.indices(steps), theirs(noise_schedule, steps), rtol=1e-7, atol=0
        )


@pytest.mark.parametrize(
    ("spacing", "bound"),
    [*((spacing, None) for spacing in SPACINGS), ("leading", -5.1), ("linspace", -5.1)],
)
def test_times_are_the_timesteps_of_dpm_solver(spacing, bound):
    """With a bound of ln(alpha/sigma), which leaves out the noisiest levels of a cosine table."""
    settings = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": bound} if bound else {}
    noise_schedule = scheduler("DPMSolverMultistep", timestep_spacing=spacing, **settings)
    last = int((noise_schedule.lambda_t >= bound).sum()) - 1 if bound else None
    grid = TableGrid(spacing=spacing, open_end=True, last=last)
    for steps in (*range(1, 900, 7), 950):
        assert torch.equal(grid.indices(steps), theirs(noise_schedule, steps)), steps


def test_times_are_the_timesteps_of_an_lcm():
    noise_schedule, grid = scheduler("LCM"), TableGrid(spacing="lcm")
    for steps in range(1, 51):
        assert torch.equal(grid.indices(steps), theirs(noise_schedule, steps)), steps
    with pytest.raises(InputError, match="an LCM takes at most 50 steps, not 51"):
        grid.indices(51)


@pytest.mark.parametrize("curve", ["karras", "exponential", "beta"])
@pytest.mark.parametrize(
    ("name", "open_end"), [("EulerDiscrete", False), ("DPMSolverMultistep", True)]
)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_curves_are_those_of_diffusers(curve, name, open_end, spacing):
    """Euler's lie between its first and last step, DPM-Solver's over the whole table."""
    noise_schedule = scheduler(
        name, timestep_spacing=spacing, steps_offset=1, **{f"use_{curve}_sigmas": True}
    )
    grid = TableGrid(spacing=spacing, offset=1, open_end=open_end, rounded=open_end, curve=curve)
    for steps in (1, 2, 10, 25):
        noise_schedule.set_timesteps(steps)
        ratio = TABLE.ratio(grid(steps, MODEL))
        expected = noise_schedule.sigmas[:steps].double()
        torch.testing.assert_close(ratio, expected, rtol=2e-4, atol=0)


def test_a_curve_of_one_value_is_its_highest():
    for curve in ("karras", "exponential", "beta"):
        assert respace(3.0, 1.0, 1, curve).tolist() == pytest.approx([3.0])


def test_steps_that_do_not_fit_are_refused():
    for grid, steps in (
        (TableGrid(), 1001),
        (TableGrid(open_end=True, spacing="linspace"), 1000),
        (TableGrid(levels=10, offset=1), 10),
    ):
        with pytest.raises(InputError, match=f"{steps} steps do not fit into .* levels"):
            grid(steps, MODEL)


def test_steps_have_their_noise_levels_under_every_process():
    """A network on a table keeps its levels, in the time of another process."""
    index, grid = [750, 500, 250, 0], TableGrid()
    ratio = TABLE.ratio(torch.tensor(index, dtype=torch.float64) / 999)
    for process in (Flow(), VE(200.0)):
        model = exact(TABLE, V(TABLE)).under(process)
        torch.testing.assert_close(process.ratio(grid(4, model)), ratio)
    assert (grid(4, exact(Flow(), Velocity())) * 999).tolist() == pytest.approx(index)


def test_times_above_the_span_move_to_its_end():
    model = MODEL.replace(span=(0.0, 998 / 999))
    grid = TableGrid(spacing="trailing")
    assert (grid(10, model) * 999).tolist()[:2] == pytest.approx([998, 899])
    with pytest.raises(InputError, match="1000 steps need several times above t = 0.998999"):
        grid(1000, model)


def test_a_sample_starts_from_unit_variance_as_diffusers():
    t = 0.3
    alpha, sigma = (
        float(f(torch.tensor(t, dtype=torch.float64))) for f in (TABLE.alpha, TABLE.sigma)
    )
    assert TableGrid().start_scale(t, MODEL) * sigma == pytest.approx(1.0)
    model = exact(VE(80.0), EDM())
    assert TableGrid().start_scale(1.0, model) * 80 == pytest.approx((80**2 + 1) ** 0.5)
    assert TableGrid(unit_start=False).start_scale(t, MODEL) == 1.0
    assert FixedGrid(((t,),)).start_scale(t, MODEL) == 1.0
    assert alpha > 0.5


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("curve", [None, "karras", "exponential", "beta"])
def test_shifted_times_are_those_of_flow_matching(shift, curve):
    settings = {f"use_{curve}_sigmas": True} if curve else {}
    noise_schedule = scheduler("FlowMatchEulerDiscrete", shift=shift, **settings)
    grid = ShiftedGrid(shift, low=shift * 0.001 / (1 + (shift - 1) * 0.001), curve=curve)
    model = exact(Flow(), Velocity())
    for steps in (1, 2, 9, 50):
        expected = theirs(noise_schedule, steps) / 1000
        torch.testing.assert_close(grid(steps, model), expected, rtol=1e-5, atol=0)
        under = model.under(VE(2000.0))
        ratio = under.process.ratio(grid(steps, under))
        torch.testing.assert_close(ratio / (1 + ratio), expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("settings", [{"shift": 0.0}, {"low": 0.5, "high": 0.5}, {"high": 1.1}])
def test_shifts_and_ends_are_checked(settings):
    with pytest.raises(InputError, match="(shifted.(shift|high) is .*must be|low < high)"):
        ShiftedGrid(**settings)


@pytest.mark.parametrize("grid", [TableGrid(spacing="trailing", last=900), ShiftedGrid(3.0)])
def test_recipes_can_name_the_grids(grid):
    table = to_table(grid)
    settings = ", ".join(
        f"{key} = {json.dumps(value)}" for key, value in table.items() if value is not None
    )
    assert table["name"] in ("table", "shifted")
    read = recipe.read("digits-flow", [f"method.grid={{{settings}}}"])
    assert read.method.grid == grid


def test_an_exact_network_samples_on_the_grid():
    noise = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = sample(MODEL, noise, TableGrid(spacing="trailing")(200, MODEL))
    torch.testing.assert_close(images, 0.3 + 0.5 * noise, rtol=0, atol=0.02)
