"""diffusers' schedulers are the truth: their tables, and images from their own samplers."""

import json
import math
import warnings
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from ddpm_folders import edit, inputs, name_of, scheduler, settings_of
from fewstep import plugins
from fewstep.errors import InputError
from fewstep.parametrization import EDM, Clean, Eps, V, Velocity
from fewstep.pretrained.diffusers import read_diffusers
from fewstep.pretrained.scheduler_classes import KINDS, REFUSED
from fewstep.pretrained.scheduler_settings import (
    ConsistencySettings,
    EdmSettings,
    FlowSettings,
    TableSettings,
)
from fewstep.process import VE, Flow, LinearBetas
from fewstep.sampling import (
    Ancestral,
    Heun,
    Multistep,
    Renoise,
    StochasticMultistep,
    Transfer,
    UniPC,
)
from fewstep.spacing import ShiftedGrid, TableGrid

# diffusers converts its tables to NumPy in the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def refusal(scheduled):
    with pytest.raises(InputError) as error:
        read_diffusers(str(scheduled))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_old_name_of_a_prediction(scheduled):
    edit(settings_of(scheduled), prediction_type=None, predict_epsilon=False)
    assert isinstance(read_diffusers(str(scheduled)).denoiser.parametrization, Clean)
    edit(settings_of(scheduled), predict_epsilon=True)
    assert isinstance(read_diffusers(str(scheduled)).denoiser.parametrization, Eps)


SETTINGS = {"edm": EdmSettings, "consistency": ConsistencySettings, "flow": FlowSettings}
V_NET = {"prediction_type": "v_prediction"}


def test_an_eps_network_whose_table_ends_in_noise_is_used_below_it(scheduled):
    noise_schedule = scheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    noise_schedule.save_pretrained(scheduled / "scheduler")
    with pytest.warns(match="sampling starts one level below, at timestep 998"):
        generator = read_diffusers(str(scheduled))
    assert generator.denoiser.span == (0, 998 / 999)
    assert generator.grid(4, generator.denoiser).tolist() == pytest.approx(
        [998 / 999, 749 / 999, 499 / 999, 249 / 999]
    )
    assert generator(inputs(), steps=4).isfinite().all()


@pytest.mark.parametrize(
    ("prediction", "kind"), [("epsilon", Eps), ("v_prediction", V), ("sample", Clean)]
)
def test_predictions_mean_what_diffusers_means(scheduled, published, prediction, kind):
    noise_schedule = scheduler("DDIM", prediction_type=prediction, clip_sample=False)
    noise_schedule.save_pretrained(scheduled / "scheduler")
    generator, net = read_diffusers(str(scheduled)), published[1]
    assert generator.denoiser.parametrization == kind(generator.denoiser.process)
    assert generator.step == Transfer()
    noise_schedule.set_timesteps(1000)
    x = inputs()
    for i in (1, 400, 950):
        with torch.no_grad():
            theirs = noise_schedule.step(net(x, i).sample, i, x).pred_original_sample
            ours = generator.denoiser(x, i / 999).x0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


SDE = {"algorithm_type": "sde-dpmsolver++"}
NEAREST = [
    ("PNDM", {}, Multistep()),
    ("LMSDiscrete", {}, Multistep()),
    ("UniPCMultistep", {"solver_type": "bh1"}, UniPC()),
    ("UniPCMultistep", {"solver_order": 1}, UniPC()),
    ("UniPCMultistep", {"predict_x0": False}, UniPC()),
    ("UniPCMultistep", {"disable_corrector": [0]}, UniPC()),
    ("DEISMultistep", {}, Multistep()),
    ("SASolver", {}, Ancestral()),
    ("KDPM2Discrete", {}, Heun()),
    ("KDPM2AncestralDiscrete", {}, Ancestral()),
    ("TCD", {}, Transfer()),
    ("DPMSolverSinglestep", {}, Multistep()),
    ("DPMSolverMultistep", {"solver_order": 3}, Multistep(order=3)),
    ("DPMSolverMultistep", {"solver_type": "heun"}, Multistep()),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        Multistep(),
    ),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        StochasticMultistep(),
    ),
    (
        "DPMSolverMultistep",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        StochasticMultistep(),
    ),
]


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize(("name", "settings", "step"), NEAREST, ids=name_of)
def test_a_solver_that_is_not_ours_is_replaced_in_one_line(scheduled, name, settings, step):
    scheduler(name, **V_NET, **settings).save_pretrained(scheduled / "scheduler")
    with pytest.warns(UserWarning) as record:
        generator = read_diffusers(str(scheduled))
    (line,) = [str(w.message) for w in record]
    sampler = plugins.name_of("sampler", type(step))
    assert line == (
        f"{settings_of(scheduled)}: fewstep does not have the solver of {name}Scheduler with these "
        f"settings: it samples by {sampler}, the nearest that it has"
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
def test_a_scheduler_that_is_refused_says_why(scheduled, name):
    edit(settings_of(scheduled), _class_name=name)
    assert refusal(scheduled).endswith(f": {name} is not supported: {REFUSED[name]}")


def test_settings_are_those_of_the_class():
    """A config may hold settings of another class, from which diffusers converted it."""
    import inspect

    import diffusers

    for name in {*KINDS} - {"DPMSolverSDEScheduler", "TCDScheduler"}:
        theirs = inspect.signature(getattr(diffusers, name).__init__).parameters
        kind = SETTINGS.get(KINDS[name].family, TableSettings)
        assert KINDS[name].settings == {*theirs} & {f.name for f in fields(kind)}, name


def test_settings_of_another_class_have_no_effect(scheduled):
    """As diffusers saves a scheduler that was made from the config of another."""
    from diffusers import DDIMScheduler

    other = scheduler("UniPCMultistep", use_flow_sigmas=True, thresholding=True, sigma_min=0.1)
    DDIMScheduler.from_config(other.config).save_pretrained(scheduled / "scheduler")
    assert json.loads(settings_of(scheduled).read_text())["use_flow_sigmas"]
    generator = read_diffusers(str(scheduled))
    assert generator.denoiser.process == LinearBetas()
    assert generator.grid == TableGrid()  # its own default, where the other had its default
    edit(settings_of(scheduled), _class_name="EulerDiscreteScheduler", sigma_min=None)
    assert read_diffusers(str(scheduled)).step == Transfer()


def test_an_address_sets_only_what_the_scheduler_has(scheduled):
    scheduler("EulerDiscrete").save_pretrained(scheduled / "scheduler")
    assert refusal(f"{scheduled}?clip_sample=true") == (
        f"diffusers:{scheduled}?clip_sample=true: EulerDiscreteScheduler has no setting "
        "clip_sample: remove it"
    )


def test_defaults_are_those_of_the_class(scheduled):
    """What a config lacks is the class's own default, which differs between classes."""
    import diffusers

    def description(config):
        settings_of(scheduled).write_text(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read_diffusers(str(scheduled)).describe()

    for name in {*KINDS} - {"DPMSolverSDEScheduler"}:  # needs torchsde
        config = getattr(diffusers, name)().to_json_string()
        assert description(json.dumps({"_class_name": name})) == description(config), name


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_schedule": "quadratic"},
        {"prediction_type": "flow_prediction"},
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
def test_a_setting_that_we_do_not_have_is_named_by_its_key(scheduled, changes):
    edit(settings_of(scheduled), **changes)
    line = refusal(scheduled)
    assert next(iter(changes)) in line and "scheduler_config.json" in line


def test_families_have_their_process_and_grid(scheduled):
    def read(name, **settings):
        scheduler(name, **settings).save_pretrained(scheduled / "scheduler")
        return read_diffusers(str(scheduled))

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


def test_a_consistency_model_has_its_own_steps(scheduled):
    noise_schedule = scheduler("CMStochasticIterative", num_train_timesteps=7, rho=5.0)
    noise_schedule.save_pretrained(scheduled / "scheduler")
    generator = read_diffusers(str(scheduled))
    assert generator.grid.counts == (1, 2, 4)
    for steps in (1, 2, 4):
        noise_schedule.set_timesteps(steps)
        sigmas = 80 * generator.grid(steps, generator.denoiser)
        torch.testing.assert_close(sigmas, noise_schedule.sigmas[:-1].double(), rtol=1e-6, atol=0)
    assert generator.step == Renoise(clip=1.0)


def test_whether_images_are_clipped_is_what_the_scheduler_says(scheduled):
    def step(**changes):
        edit(settings_of(scheduled), **changes)
        return read_diffusers(str(scheduled)).step

    assert step() == Transfer(clip=1.0)
    assert step(clip_sample_range=2.5) == Transfer(clip=2.5)
    assert step(clip_sample=False) == Transfer()
    path = settings_of(scheduled)
    path.write_text(path.read_text().replace('"clip_sample": false', '"clip_sample": null'))
    assert read_diffusers(str(scheduled)).step == Transfer()
    assert step(clip_sample=None, clip_sample_range=None) == Transfer(clip=1.0)
    # these never clip, whatever their settings say
    assert step(_class_name="EulerDiscreteScheduler", clip_sample=True) == Transfer()
    edit(
        settings_of(scheduled), _class_name="DDIMScheduler", thresholding=True, sample_max_value=1.5
    )
    with pytest.warns(UserWarning, match="dynamic thresholding is not supported: it is ignored"):
        assert read_diffusers(str(scheduled)).step == Transfer()
