"""Noise schedules: the tables of diffusers' schedulers are the truth."""

import re

import pytest
import torch

from ddpm_folders import edit, scheduler, settings_of
from fewstep.errors import InputError
from fewstep.pretrained.diffusers import read_diffusers
from fewstep.process import LinearBetas, Table

# diffusers converts its tables to NumPy in the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def refusal(scheduled):
    with pytest.raises(InputError) as error:
        read_diffusers(str(scheduled))
    assert "\n" not in str(error.value)
    return str(error.value)


V_NET = {"prediction_type": "v_prediction"}
SCHEDULES = [
    {},
    {"beta_start": 2e-4, "beta_end": 0.01},
    {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"beta_schedule": "sigmoid"},
    {"beta_schedule": "laplace"},
    {"num_train_timesteps": 50, "beta_end": 0.3},
    {"trained_betas": torch.linspace(1e-4, 0.02, 1000).tolist()},
    {"trained_betas": torch.linspace(0.01, 0.2, 40).square().tolist(), "num_train_timesteps": 40},
]


def table_of(noise_schedule):
    """sigma/alpha at each step of diffusers' table, in float64 from its float32 products."""
    products = noise_schedule.alphas_cumprod.double()
    return torch.sqrt((1 - products) / products)


@pytest.mark.parametrize("settings", SCHEDULES, ids=lambda settings: ",".join(settings) or "none")
def test_tables_of_every_schedule(scheduled, settings):
    noise_schedule = scheduler(**settings)
    noise_schedule.save_pretrained(scheduled / "scheduler")
    process = read_diffusers(str(scheduled)).denoiser.process
    steps = len(noise_schedule.alphas_cumprod)
    t = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    # diffusers' is in float32, where 1 - abar at step 0 has few digits
    torch.testing.assert_close(process.ratio(t), table_of(noise_schedule), rtol=1e-3, atol=0.0)
    linear = "schedule" not in "".join(settings) and settings.get("num_train_timesteps") != 40
    assert isinstance(process, LinearBetas if linear else Table)


def test_an_exponential_table(scheduled):
    noise_schedule = scheduler("HeunDiscrete", beta_schedule="exp")
    noise_schedule.save_pretrained(scheduled / "scheduler")
    process = read_diffusers(str(scheduled)).denoiser.parametrization.native
    t = torch.arange(1000, dtype=torch.float64) / 999
    torch.testing.assert_close(process.ratio(t), table_of(noise_schedule), rtol=1e-3, atol=0.0)


def test_betas_on_a_line_are_described_by_its_ends(scheduled):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()
    edit(settings_of(scheduled), trained_betas=betas)
    process = read_diffusers(str(scheduled)).denoiser.process
    assert isinstance(process, LinearBetas) and process.steps == 1000
    assert (process.beta_0, process.beta_1) == pytest.approx((1e-4, 0.02), rel=1e-6)
    edit(settings_of(scheduled), trained_betas=[*betas[:500], betas[500] * 1.001, *betas[501:]])
    assert isinstance(read_diffusers(str(scheduled)).denoiser.process, Table)


def test_betas_that_make_no_table(scheduled):
    edit(settings_of(scheduled), trained_betas=[0.1, 0.0, 0.3])
    assert "its betas are not a noise schedule" in refusal(scheduled)


@pytest.mark.parametrize("kind", ["rescaled", "trained"])
def test_a_table_that_ends_in_noise(scheduled, kind):
    """Zero terminal SNR: the last level has sigma/alpha = 1e6, the others are diffusers'."""
    rescaled = scheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert rescaled.alphas_cumprod[-1] == 0
    noise_schedule = rescaled
    if kind == "trained":
        noise_schedule = scheduler(
            trained_betas=rescaled.betas.tolist(), prediction_type="v_prediction"
        )
    noise_schedule.save_pretrained(scheduled / "scheduler")
    denoiser = read_diffusers(str(scheduled)).denoiser
    ratio = denoiser.process.ratio(torch.arange(1000, dtype=torch.float64) / 999)
    assert ratio[-1] == pytest.approx(1e6) and (ratio.diff() > 0).all()
    torch.testing.assert_close(ratio[:990], table_of(rescaled)[:990], rtol=1e-3, atol=0.0)
    assert denoiser.span == (0, 1)


def test_a_table_that_ends_in_noise_along_sigma(scheduled):
    """diffusers' samplers along sigma, Euler and DPM-Solver, end at 4096."""
    noise_schedule = scheduler("EulerDiscrete", rescale_betas_zero_snr=True, **V_NET)
    noise_schedule.save_pretrained(scheduled / "scheduler")
    assert float(noise_schedule.sigmas[0]) == pytest.approx(4096)
    process = read_diffusers(str(scheduled)).denoiser.process
    ratio = process.ratio(torch.arange(1000, dtype=torch.float64) / 999)
    assert ratio[-1] == pytest.approx(4096) and (ratio.diff() > 0).all()
    expected = noise_schedule.sigmas[:-1].flip(0)[:990].double()
    torch.testing.assert_close(ratio[:990], expected, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_train_timesteps": 1},
        {"beta_start": -1.0},
        {"beta_end": 5.0},
        {"beta_schedule": "scaled_linear", "beta_end": 5.0},
        {"trained_betas": [0.1, 2.0, 3.9]},
        {"trained_betas": [0.1]},
        {"trained_betas": []},
    ],
    ids=str,
)
def test_betas_that_are_no_schedule_are_refused(scheduled, settings):
    edit(settings_of(scheduled), **settings)
    message = refusal(scheduled)
    assert "are not a noise schedule" in message or re.search(
        "(trained|end|start)(_betas)? = ", message
    )
