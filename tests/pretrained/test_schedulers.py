"""diffusers' schedulers are the truth: their tables, and images from their own samplers."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch

import fewstep
from ddpm_folders import SIZE, edit, inputs, network, saved, scheduler, theirs_from
from fewstep import runs
from fewstep.errors import InputError
from fewstep.images import to_uint8
from fewstep.parametrization import EDM, Clean, Eps, V, Velocity
from fewstep.pretrained.diffusers import read_diffusers
from fewstep.pretrained.scheduler_classes import KINDS, REFUSED
from fewstep.process import VE, Flow, LinearBetas
from fewstep.sampling import Ancestral, Heun, Multistep, Renoise, RowNoise, Transfer
from fewstep.spacing import ShiftedGrid, TableGrid

# diffusers converts its tables to NumPy in the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as `DDPMPipeline.save_pretrained` writes it, and the network in it."""
    folder = tmp_path_factory.mktemp("published") / "ddpm"
    return folder, saved(folder)


@pytest.fixture
def folder(published, tmp_path):
    """A folder with that network's weights, and a scheduler to spoil."""
    (tmp_path / "unet").symlink_to(published[0] / "unet")
    (tmp_path / "scheduler").mkdir()
    scheduler().save_pretrained(tmp_path / "scheduler")
    return tmp_path


def settings_of(folder):
    return folder / "scheduler" / "scheduler_config.json"


def refusal(folder):
    with pytest.raises(InputError) as error:
        read_diffusers(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


V_NET = {"prediction_type": "v_prediction"}


def test_an_eps_network_whose_table_ends_in_noise_is_used_below_it(folder):
    noise_schedule = scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    noise_schedule.save_pretrained(folder / "scheduler")
    generator = read_diffusers(str(folder))
    assert generator.denoiser.span == (0, 998 / 999)
    assert generator.grid(4, generator.denoiser).tolist() == pytest.approx(
        [998 / 999, 749 / 999, 499 / 999, 249 / 999]
    )
    assert generator(inputs(), steps=4).isfinite().all()


@pytest.mark.parametrize(
    ("prediction", "kind"), [("epsilon", Eps), ("v_prediction", V), ("sample", Clean)]
)
def test_predictions_mean_what_diffusers_means(folder, published, prediction, kind):
    noise_schedule = scheduler("DDIM", prediction_type=prediction, clip_sample=False)
    noise_schedule.save_pretrained(folder / "scheduler")
    generator, net = read_diffusers(str(folder)), published[1]
    assert generator.denoiser.parametrization == kind(generator.denoiser.process)
    assert generator.step == Transfer()
    noise_schedule.set_timesteps(1000)
    x = inputs()
    for i in (1, 400, 950):
        with torch.no_grad():
            theirs = noise_schedule.step(net(x, i).sample, i, x).pred_original_sample
            ours = generator.denoiser(x, i / 999).x0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


ZERO_SNR = {**V_NET, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
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
    (
        "DPMSolverMultistep",
        {**V_NET, "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
        10,
        None,
    ),
    ("DPMSolverSinglestep", {**V_NET, "solver_order": 1}, 10, Transfer()),
    ("EDMEuler", {}, 10, Transfer()),
    ("EDMEuler", {"sigma_schedule": "exponential", "sigma_data": 1.0}, 10, None),
    ("EDMDPMSolverMultistep", {"sigma_min": 0.01, "rho": 5.0}, 10, Multistep()),
    ("FlowMatchEulerDiscrete", {}, 10, Transfer()),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, 10, None),
    ("FlowMatchEulerDiscrete", {"num_train_timesteps": 500}, 10, None),
    ("FlowMatchEulerDiscrete", {"use_karras_sigmas": True}, 10, None),
    ("FlowMatchHeunDiscrete", {"shift": 2.0}, 8, Heun()),
]


def name_of(value):
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "default"
    return str(value) if isinstance(value, str) else ""


@pytest.mark.parametrize(("name", "settings", "count", "step"), EQUAL, ids=name_of)
def test_samples_are_those_of_diffusers(folder, published, name, settings, count, step):
    """By the default sampler and grid, from the noise that a pipeline starts with."""
    noise_schedule = scheduler(name, **settings)
    noise_schedule.save_pretrained(folder / "scheduler")
    generator = read_diffusers(str(folder))
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
]


@pytest.mark.parametrize(("name", "settings"), ROUNDED, ids=name_of)
def test_samples_at_levels_that_diffusers_rounds(folder, published, name, settings):
    """DPM-Solver rounds the network's steps, but not sigma; here its network gets both exactly."""
    noise_schedule = scheduler(name, **settings)
    noise_schedule.save_pretrained(folder / "scheduler")
    generator = read_diffusers(str(folder))
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
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, "flow_match_euler_discrete", None),
    ("CMStochasticIterative", {}, "consistency_models", None),
    ("CMStochasticIterative", {"clip_denoised": False}, "consistency_models", None),
    ("FlowMatchLCM", {"shift": 3.0}, "flow_match_lcm", None),
]


@pytest.mark.parametrize(("name", "settings", "module", "step"), RANDOM, ids=name_of)
def test_samples_with_noise_are_those_of_diffusers(
    folder, published, monkeypatch, name, settings, module, step
):
    """On shared noise. DDPM's own sampler is not the default, which is deterministic."""
    noise_schedule = scheduler(name, **settings)
    noise_schedule.save_pretrained(folder / "scheduler")
    draws = RowNoise(range(3))
    monkeypatch.setattr(
        f"diffusers.schedulers.scheduling_{module}.randn_tensor",
        lambda *_, **__: draws.like(inputs()),
    )
    expected, _ = theirs_from(published[1], noise_schedule, inputs(), 8)
    generator = read_diffusers(str(folder))
    if step:
        assert generator.step.deterministic
        generator = generator.with_sampler(step=step)
    ours = generator(inputs(), steps=8, seed=range(3))
    scale = max(1.0, float(expected.abs().max()))
    assert float((ours - expected).abs().max()) < 1e-3 * scale


NEAREST = [
    ("PNDM", {}, Multistep()),
    ("LMSDiscrete", {}, Multistep()),
    ("UniPCMultistep", {}, Multistep()),
    ("DEISMultistep", {}, Multistep()),
    ("SASolver", {}, Ancestral()),
    ("KDPM2Discrete", {}, Heun()),
    ("KDPM2AncestralDiscrete", {}, Ancestral()),
    ("TCD", {}, Transfer()),
    ("DPMSolverSinglestep", {}, Multistep()),
    ("DPMSolverMultistep", {"solver_order": 3}, Multistep()),
    ("DPMSolverMultistep", {"solver_type": "heun"}, Multistep()),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        Multistep(),
    ),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, Ancestral()),
]


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize(("name", "settings", "step"), NEAREST, ids=name_of)
def test_a_solver_that_is_not_ours_is_replaced_in_one_line(folder, name, settings, step):
    scheduler(name, **V_NET, **settings).save_pretrained(folder / "scheduler")
    with pytest.warns(UserWarning) as record:
        generator = read_diffusers(str(folder))
    (line,) = [str(w.message) for w in record]
    assert line == (
        f"{settings_of(folder)}: fewstep does not have the solver of {name}Scheduler with these "
        f"settings: it samples by {type(step).__name__.lower()}, the nearest that it has"
    )
    assert generator.step == step
    assert isinstance(generator.denoiser.parametrization, V)
    assert generator(inputs(), steps=3).isfinite().all()


def test_every_scheduler_of_diffusers_is_read_or_refused():
    """No class is forgotten: a new one of diffusers fails this test."""
    import diffusers

    ours = {*KINDS, *REFUSED}
    theirs = {name for name in dir(diffusers) if name.endswith("Scheduler")}
    assert theirs <= ours
    # not exported at the top of diffusers
    assert ours - theirs == {"ScoreSdeVpScheduler", "ConsistencyDecoderScheduler"}


def test_the_table_of_the_docs_is_complete():
    page = (Path(__file__).parents[2] / "docs" / "pretrained.md").read_text()
    assert not [name for name in (*KINDS, *REFUSED) if f"`{name}`" not in page]


@pytest.mark.parametrize("name", REFUSED)
def test_a_scheduler_that_is_refused_says_why(folder, name):
    edit(settings_of(folder), _class_name=name)
    assert refusal(folder).endswith(f": {name} is not supported: {REFUSED[name]}")


def test_defaults_are_those_of_the_class(folder):
    """What a config lacks is the class's own default, which differs between classes."""
    import diffusers

    def description(config):
        settings_of(folder).write_text(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_diffusers(str(folder)).describe()

    for name in {*KINDS} - {"DPMSolverSDEScheduler"}:  # needs torchsde
        config = getattr(diffusers, name)().to_json_string()
        assert description(json.dumps({"_class_name": name})) == description(config), name


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_schedule": "quadratic"},
        {"prediction_type": "flow_prediction"},
        {"predict_epsilon": False},
        {"num_train_timesteps": 0},
        {"timestep_spacing": "log"},
        {"_class_name": "MyScheduler"},
        {"timestep_type": "continuous", "_class_name": "EulerDiscreteScheduler"},
        {"interpolation_type": "log_linear", "_class_name": "EulerDiscreteScheduler"},
        {"sigma_min": 0.1, "_class_name": "EulerDiscreteScheduler"},
        {"use_flow_sigmas": True, "_class_name": "UniPCMultistepScheduler"},
        {"use_dynamic_shifting": True, "_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"shift_terminal": 0.1, "_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"prediction_type": "v_prediction", "_class_name": "EDMEulerScheduler"},
    ],
    ids=name_of,
)
def test_a_setting_that_we_do_not_have_is_named_by_its_key(folder, changes):
    edit(settings_of(folder), **changes)
    line = refusal(folder)
    assert next(iter(changes)) in line and "scheduler_config.json" in line


def test_families_have_their_process_and_grid(folder):
    def read(name, **settings):
        scheduler(name, **settings).save_pretrained(folder / "scheduler")
        return read_diffusers(str(folder))

    edm = read("EDMEuler", sigma_max=40.0, sigma_data=1.0)
    assert edm.denoiser.process == VE(40.0)
    assert edm.denoiser.parametrization == EDM(1.0, 0.002, 40.0)
    assert edm.denoiser.backbone.level_scale == 1
    flow = read("FlowMatchEulerDiscrete", shift=3.0)
    assert flow.denoiser.process == Flow() and flow.denoiser.parametrization == Velocity(Flow())
    assert flow.grid == ShiftedGrid(3.0, low=0.003 / 1.002)
    heun = read("HeunDiscrete")
    native = heun.denoiser.parametrization.native
    assert native == LinearBetas(1000, 0.00085, 0.012)
    assert heun.denoiser.process == VE(float(native.ratio(torch.ones((), dtype=torch.float64))))
    assert heun.denoiser.span[1] == 1
    assert read("DDIM", steps_offset=1).grid == TableGrid(offset=1)
    assert read("LCM", original_inference_steps=25).grid == TableGrid(spacing="lcm", original=25)
    assert isinstance(read("LCM").step, Renoise)
    assert math.isclose(read("DDPM").denoiser.span[1], 1)


def test_a_consistency_model_has_its_own_steps(folder):
    noise_schedule = scheduler("CMStochasticIterative", num_train_timesteps=7, rho=5.0)
    noise_schedule.save_pretrained(folder / "scheduler")
    generator = read_diffusers(str(folder))
    assert generator.grid.counts == (1, 2, 4)
    for steps in (1, 2, 4):
        noise_schedule.set_timesteps(steps)
        sigmas = 80 * generator.grid(steps, generator.denoiser)
        torch.testing.assert_close(sigmas, noise_schedule.sigmas[:-1].double(), rtol=1e-6, atol=0)
    assert generator.step == Renoise(clip=1.0)


def test_whether_images_are_clipped_is_what_the_scheduler_says(folder):
    def step(**changes):
        edit(settings_of(folder), **changes)
        return read_diffusers(str(folder)).step

    assert step() == Transfer(clip=1.0)
    assert step(clip_sample_range=2.5) == Transfer(clip=2.5)
    assert step(clip_sample=False) == Transfer()
    assert step(clip_sample=None, clip_sample_range=None) == Transfer(clip=1.0)
    # these never clip, whatever their settings say
    assert step(_class_name="EulerDiscreteScheduler", clip_sample=True) == Transfer()
    edit(settings_of(folder), _class_name="DDIMScheduler", thresholding=True, sample_max_value=1.5)
    with pytest.warns(UserWarning, match="dynamic thresholding is not supported: it is ignored"):
        assert read_diffusers(str(folder)).step == Transfer()


@pytest.mark.parametrize(
    ("prediction", "count"), [("epsilon", 2), ("epsilon", 10), ("v_prediction", 50)]
)
def test_pixels_are_those_of_diffusers_pipeline(folder, published, prediction, count):
    """Bytes by the default grid, from a pipeline's own noise; few round to a neighbour."""
    from diffusers import DDIMPipeline

    noise_schedule = scheduler(prediction_type=prediction)
    noise_schedule.save_pretrained(folder / "scheduler")
    pipeline = DDIMPipeline(published[1], noise_schedule)
    pipeline.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(5)
    pixels = pipeline(
        batch_size=3, generator=draw, num_inference_steps=count, output_type="np"
    ).images
    noise = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    generator = fewstep.load(f"diffusers:{folder}")
    ours = to_uint8(generator(noise, steps=count)).int()
    theirs = torch.from_numpy(pixels * 255).round().int().permute(0, 3, 1, 2)
    assert int((ours - theirs).abs().max()) <= 1
    assert float((ours != theirs).float().mean()) < 0.01


@pytest.mark.parametrize("name", ["DDIM", "HeunDiscrete", "EDMEuler", "FlowMatchEulerDiscrete"])
def test_a_checkpoint_saved_as_ours_is_the_same(folder, tmp_path, name):
    scheduler(name).save_pretrained(folder / "scheduler")
    generator = read_diffusers(str(folder))
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
