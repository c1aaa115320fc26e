"""Images are those of diffusers' own schedulers, by the default sampler and grid."""

import pytest
import torch

import fewstep
from ddpm_folders import SIZE, inputs, name_of, network, saved, scheduler, theirs_from
from fewstep import runs
from fewstep.images import to_uint8
from fewstep.noise import RowNoise
from fewstep.pretrained.diffusers import read_diffusers
from fewstep.sampling import Ancestral, Heun, Multistep, Transfer, UniPC

# diffusers converts its tables to NumPy in the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
V_NET = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V_NET, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
THIRD = {"solver_order": 3, "lower_order_final": False}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
EQUAL = [
    ("DDIM", {}, 7, Transfer(clip=1.0)),
    ("DDIM", {"clip_sample": False}, 10, Transfer()),
    ("DDIM", {"clip_sample_range": 0.8, "timestep_spacing": "trailing"}, 5, Transfer(clip=0.8)),
    ("DDIM", {"prediction_type": "sample", "timestep_spacing": "trailing"}, 10, None),
    ("DDIM", {**V_NET, "steps_offset": 1}, 2, Transfer(clip=1.0)),
    ("DDIM", {**V_NET, "thresholding": True}, 4, Transfer(clip=1.0)),
    ("DDIM", {**V_NET, "beta_schedule": "squaredcos_cap_v2"}, 20, None),
    ("DDIM", ZERO_SNR, 10, None),
    ("DDIM", {"num_train_timesteps": 50, "beta_end": 0.3}, 10, None),
    ("DDIMParallel", V_NET, 10, None),
    ("EulerDiscrete", {}, 10, Transfer()),
    ("EulerDiscrete", {**V_NET, "timestep_spacing": "leading", "steps_offset": 1}, 10, None),
    ("EulerDiscrete", {**V_NET, "timestep_spacing": "trailing"}, 7, None),
    ("EulerDiscrete", {**V_NET, "use_karras_sigmas": True}, 12, None),
    ("EulerDiscrete", {**V_NET, "use_exponential_sigmas": True}, 12, None),
    ("EulerDiscrete", {**V_NET, "use_beta_sigmas": True}, 12, None),
    ("EulerDiscrete", ZERO_SNR, 10, None),
    ("HeunDiscrete", {}, 10, Heun()),
    ("HeunDiscrete", {**V_NET, "timestep_spacing": "leading"}, 6, None),
    ("HeunDiscrete", {**V_NET, "use_karras_sigmas": True}, 10, None),
    ("HeunDiscrete", {**V_NET, "clip_sample": True, "clip_sample_range": 0.7}, 7, Heun(clip=0.7)),
    ("DPMSolverMultistep", {}, 10, Multistep()),
    ("DPMSolverMultistep", {**V_NET, "thresholding": True}, 10, Multistep(clip=1.0)),
    ("DPMSolverMultistep", V_NET, 20, None),
    ("DPMSolverMultistep", {**V_NET, "timestep_spacing": "leading"}, 12, None),
    ("DPMSolverMultistep", ZERO_SNR, 10, None),
    ("DPMSolverMultistep", {**V_NET, "solver_order": 1}, 10, Transfer()),
    ("DPMSolverMultistep", {**V_NET, **THIRD}, 10, Multistep(order=3)),
    ("DPMSolverMultistep", {**ZERO_SNR, **THIRD}, 6, Multistep(order=3)),
    (
        "DPMSolverMultistep",
        {**V_NET, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        10,
        None,
    ),
    ("UniPCMultistep", {}, 10, UniPC()),
    ("UniPCMultistep", {**V_NET, "thresholding": True}, 7, UniPC(clip=1.0)),
    ("UniPCMultistep", {**V_NET, "timestep_spacing": "trailing"}, 20, None),
    ("UniPCMultistep", ZERO_SNR, 10, None),
    ("UniPCMultistep", {**V_NET, "solver_order": 3}, 10, UniPC(order=3)),
    ("DPMSolverSinglestep", {**V_NET, "solver_order": 1}, 10, Transfer()),
    ("EDMEuler", {}, 10, Transfer()),
    ("EDMEuler", {"sigma_schedule": "exponential", "sigma_data": 1.0}, 10, None),
    ("EDMDPMSolverMultistep", {"sigma_min": 0.01, "rho": 5.0}, 10, Multistep()),
    ("EDMDPMSolverMultistep", THIRD, 12, Multistep(order=3)),
    ("FlowMatchEulerDiscrete", {}, 10, Transfer()),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, 10, None),
    ("FlowMatchEulerDiscrete", {"num_train_timesteps": 500}, 10, None),
    ("FlowMatchEulerDiscrete", {"use_karras_sigmas": True}, 10, None),
    ("FlowMatchHeunDiscrete", {"shift": 2.0}, 8, Heun()),
]


@pytest.mark.parametrize(("name", "settings", "count", "step"), EQUAL, ids=name_of)
def test_samples_are_those_of_diffusers(scheduled, published, name, settings, count, step):
    """By the default sampler and grid, from the noise that a pipeline starts with."""
    noise_schedule = scheduler(name, **settings)
    noise_schedule.save_pretrained(scheduled / "scheduler")
    generator = read_diffusers(str(scheduled))
    # ours computes in float64: at the noisy end an eps network's rounding is enlarged 157 times
    expected, _ = theirs_from(published[1], noise_schedule, inputs(), count)
    ours = generator.double()(inputs().double(), steps=count)
    scale = max(1.0, float(expected.abs().max()))
    assert float((ours - expected).abs().max()) < 1e-3 * scale
    assert step is None or generator.step == step


ROUNDED = [
    ("DPMSolverMultistep", {**V_NET, "use_karras_sigmas": True}),
    ("DPMSolverMultistep", {**V_NET, "use_lu_lambdas": True}),
    ("DPMSolverMultistep", {**V_NET, "use_exponential_sigmas": True}),
    ("DPMSolverMultistep", {**V_NET, "use_beta_sigmas": True}),
    ("DPMSolverMultistep", {**FLOW, "flow_shift": 3.0}),
    ("UniPCMultistep", {**FLOW, "flow_shift": 3.0}),
    ("UniPCMultistep", {**FLOW, "solver_order": 3}),
]


@pytest.mark.parametrize(("name", "settings"), ROUNDED, ids=name_of)
def test_samples_at_levels_that_diffusers_rounds(scheduled, published, name, settings):
    """DPM-Solver rounds the network's steps, but not sigma; here its network gets both exactly."""
    noise_schedule = scheduler(name, **settings)
    noise_schedule.save_pretrained(scheduled / "scheduler")
    generator = read_diffusers(str(scheduled))
    count, x = 10, inputs()
    noise_schedule.set_timesteps(count)
    sigmas, denoiser = noise_schedule.sigmas[:count].double(), generator.denoiser
    times = sigmas if settings.get("use_flow_sigmas") else denoiser.process.time(sigmas)
    exact = [float(t) * denoiser.process.levels for t in times]
    for t, level in zip(noise_schedule.timesteps, exact, strict=True):
        with torch.no_grad():
            output = published[1](x, torch.tensor(level)).sample
        x = noise_schedule.step(output, t, x).prev_sample
    assert float((generator(inputs(), steps=count) - x).abs().max()) < 2e-3


RANDOM = [
    ("DDPM", {}, "ddpm", Ancestral(clip=1.0)),
    ("DDPM", {**V_NET, "clip_sample": False}, "ddpm", Ancestral()),
    ("DDPM", {**V_NET, "variance_type": "fixed_large"}, "ddpm", Ancestral("large", clip=1.0)),
    ("EulerAncestralDiscrete", V_NET, "euler_ancestral_discrete", None),
    ("LCM", {**V_NET, "clip_sample": True}, "lcm", None),
    (
        "DPMSolverMultistep",
        {**V_NET, "algorithm_type": "sde-dpmsolver++", "solver_order": 1},
        "dpmsolver_multistep",
        None,
    ),
    (
        "DPMSolverMultistep",
        {**V_NET, "algorithm_type": "sde-dpmsolver++"},
        "dpmsolver_multistep",
        None,
    ),
    (
        "EDMDPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++"},
        "edm_dpmsolver_multistep",
        None,
    ),
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, "flow_match_euler_discrete", None),
    ("CMStochasticIterative", {}, "consistency_models", None),
    ("CMStochasticIterative", {"clip_denoised": False}, "consistency_models", None),
    ("FlowMatchLCM", {"shift": 3.0}, "flow_match_lcm", None),
]


@pytest.mark.parametrize(("name", "settings", "module", "step"), RANDOM, ids=name_of)
def test_samples_with_noise_are_those_of_diffusers(
    scheduled, published, monkeypatch, name, settings, module, step
):
    """On shared noise. DDPM's own sampler is not the default, which is deterministic."""
    noise_schedule = scheduler(name, **settings)
    noise_schedule.save_pretrained(scheduled / "scheduler")
    draws = RowNoise(range(3))
    monkeypatch.setattr(
        f"diffusers.schedulers.scheduling_{module}.randn_tensor",
        lambda *_, **__: draws.like(inputs()),
    )
    expected, _ = theirs_from(published[1], noise_schedule, inputs(), 8)
    generator = read_diffusers(str(scheduled))
    if step:
        assert generator.step.deterministic
        generator = generator.with_sampler(step=step)
    ours = generator(inputs(), steps=8, seed=range(3))
    scale = max(1.0, float(expected.abs().max()))
    assert float((ours - expected).abs().max()) < 1e-3 * scale


@pytest.mark.parametrize(
    ("prediction", "count"), [("epsilon", 2), ("epsilon", 10), ("v_prediction", 50)]
)
def test_pixels_are_those_of_diffusers_pipeline(scheduled, published, prediction, count):
    """Bytes by the default grid, from a pipeline's own noise; few round to a neighbour."""
    from diffusers import DDIMPipeline

    noise_schedule = scheduler(prediction_type=prediction)
    noise_schedule.save_pretrained(scheduled / "scheduler")
    pipeline = DDIMPipeline(published[1], noise_schedule)
    pipeline.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(5)
    pixels = pipeline(
        batch_size=3, generator=draw, num_inference_steps=count, output_type="np"
    ).images
    noise = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    generator = fewstep.load(f"diffusers:{scheduled}")
    ours = to_uint8(generator(noise, steps=count)).int()
    theirs = torch.from_numpy(pixels * 255).round().int().permute(0, 3, 1, 2)
    assert int((ours - theirs).abs().max()) <= 1
    assert float((ours != theirs).float().mean()) < 0.01


@pytest.mark.parametrize("name", ["DDIM", "HeunDiscrete", "EDMEuler", "FlowMatchEulerDiscrete"])
def test_a_checkpoint_saved_as_ours_is_the_same(scheduled, tmp_path, name):
    scheduler(name).save_pretrained(scheduled / "scheduler")
    generator = read_diffusers(str(scheduled))
    runs.save_generator(tmp_path / "m.safetensors", generator, None, {})
    again = fewstep.load(tmp_path / "m.safetensors")
    assert (again.step, again.grid) == (generator.step, generator.grid)
    assert torch.equal(again(inputs(), steps=3), generator(inputs(), steps=3))
    assert runs.weights_hash(again) == runs.weights_hash(generator)


def test_a_class_condition_samples_as_diffusers(tmp_path):
    noise_schedule = scheduler("DDIM", prediction_type="v_prediction")
    net = saved(tmp_path, network(num_class_embeds=4), noise_schedule)
    label = torch.tensor([3, 0, 2])
    expected, _ = theirs_from(net, noise_schedule, inputs(), 6, class_labels=label)
    ours = read_diffusers(str(tmp_path))(inputs(), steps=6, cond=fewstep.Condition(label))
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
