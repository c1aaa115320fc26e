"""diffusers' own networks, tables and samplers are the truth; it writes the folders on the spot."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import fewstep
from fewstep import runs
from fewstep.errors import InputError
from fewstep.parametrization import Clean, Eps, V
from fewstep.pretrained.diffusers import read_diffusers
from fewstep.process import LinearBetas, Table
from fewstep.sampling import Ancestral, RowNoise, Transfer
from fewstep.times import FixedGrid

SIZE = 8
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def network(**changes):
    """A small UNet2DModel in which every weight has an effect, one head at 4 pixels."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    told = {
        "sample_size": SIZE,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": None,
        **changes,
    }
    net = UNet2DModel(**told)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return net.eval()


def ddpm(**told):
    from diffusers import DDPMScheduler

    return DDPMScheduler(**told)


def ddim(**told):
    from diffusers import DDIMScheduler

    return DDIMScheduler(**told)


def saved(folder, net=None, scheduler=None, **options):
    from diffusers import DDPMPipeline

    net = net or network()
    DDPMPipeline(net, scheduler or ddpm()).save_pretrained(folder, **options)
    return net


def edit(path, **changes):
    """Change keys of a JSON file; None removes one."""
    told = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder as `DDPMPipeline.save_pretrained` writes it, and the network in it."""
    folder = tmp_path_factory.mktemp("published") / "ddpm"
    return folder, saved(folder)


@pytest.fixture
def folder(published, tmp_path):
    """A copy of it to spoil."""
    return Path(shutil.copytree(published[0], tmp_path / "ddpm"))


def inputs(rows=3, channels=3):
    draw = torch.Generator().manual_seed(2)
    return torch.randn(rows, channels, SIZE, SIZE, generator=draw)


@torch.no_grad()
def gap(generator, net, steps=1000, channels=3):
    """The largest difference between outputs at steps of the table: t = i/(T - 1) is step i."""
    x, worst = inputs(channels=channels), 0.0
    for i in (0, 1, 7, steps // 2, steps - 2, steps - 1):
        ours = generator.denoiser(x, i / (steps - 1)).output
        theirs = net(x, i).sample
        assert theirs.std() > 0.3
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def refusal(folder):
    with pytest.raises(InputError) as told:
        read_diffusers(str(folder))
    assert "\n" not in str(told.value)
    return str(told.value)


def test_the_network_says_what_diffusers_says_at_every_step(published):
    folder, net = published
    generator = fewstep.load(f"diffusers:{folder}")
    assert gap(generator, net) < 1e-5
    assert generator.spec == fewstep.SampleSpec((3, SIZE, SIZE))
    assert generator.denoiser.process == LinearBetas()
    assert generator.denoiser.parametrization == Eps(LinearBetas())
    assert not generator.training and not any(p.requires_grad for p in generator.parameters())


def flat(folder):
    """As google/ddpm-cifar10-32: everything in one folder."""
    for path in [*(folder / "unet").iterdir(), folder / "scheduler" / "scheduler_config.json"]:
        path.rename(folder / path.name)
    (folder / "unet").rmdir()
    return folder


def bare(folder):
    """As `UNet2DModel.save_pretrained`, with the scheduler's folder beside."""
    flat(folder)
    (folder / "scheduler_config.json").rename(folder / "scheduler" / "scheduler_config.json")
    return folder


def inner(folder):
    return folder / "unet"


def pickled(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    return folder


def halved(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({k: v.half() for k, v in load_file(weights).items()}, weights)
    return folder


@pytest.mark.parametrize("layout", [flat, bare, inner, pickled, halved])
def test_every_layout_is_read(folder, published, layout):
    scheduler = folder / "scheduler" / "scheduler_config.json"
    edit(scheduler, prediction_type="v_prediction")  # not what would be taken without the file
    generator = read_diffusers(str(layout(folder)))
    assert isinstance(generator.denoiser.parametrization, V)
    assert gap(generator, published[1]) < (1e-2 if layout is halved else 1e-5)
    assert next(generator.parameters()).dtype == torch.float32


def test_without_a_scheduler_ddpms_is_taken_and_said(folder, published):
    shutil.rmtree(folder / "scheduler")
    with pytest.warns(UserWarning, match="no scheduler_config.json .* 1,000 linear betas"):
        generator = read_diffusers(str(folder))
    assert generator.denoiser.process == LinearBetas() and gap(generator, published[1]) < 1e-5
    assert generator.step == Transfer(clip=1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_head_dim": 16},
        {"layers_per_block": 2, "add_attention": False},
        {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6},
        {"in_channels": 1, "out_channels": 1, "act_fn": "swish", "time_embedding_dim": 64},
        {"sample_size": (SIZE, SIZE), "attn_norm_num_groups": 8, "dropout": 0.1},
        {"up_block_types": ("UpBlock2D", "UpBlock2D"), "down_block_types": ("DownBlock2D",) * 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_that_is_taken_has_its_effect(tmp_path, changes):
    net = saved(tmp_path, network(**changes))
    generator = read_diffusers(str(tmp_path))
    channels = changes.get("in_channels", 3)
    assert generator.spec.shape == (channels, SIZE, SIZE)
    assert gap(generator, net, channels=channels) < 1e-5
    assert generator.denoiser.backbone.config.dropout == changes.get("dropout", 0)


def test_what_an_old_config_lacks_is_diffusers_default(tmp_path):
    from diffusers import UNet2DModel

    net = saved(tmp_path, network(attention_head_dim=8, norm_eps=1e-5))
    told = json.loads((tmp_path / "unet" / "config.json").read_text())
    own = ("_class_name", "sample_size", "norm_num_groups", "layers_per_block")
    kept = {k: v for k, v in told.items() if k in own or "block" in k and "mid" not in k}
    kept |= {"down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"], "decay": 0.9999}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(kept))
    assert gap(read_diffusers(str(tmp_path)), net) < 1e-5
    assert gap(read_diffusers(str(tmp_path)), UNet2DModel.from_pretrained(tmp_path / "unet")) < 1e-5


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_attention_of_old_checkpoints_is_renamed_as_diffusers_does(folder, published, kind):
    from diffusers import UNet2DModel

    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    old = {}
    for name, value in load_file(weights).items():
        for now, before in OLD.items():
            name = name.replace(f".{now}.", f".{before}.")
        old[name] = value
    assert sum(".proj_attn." in name for name in old) == 8  # one on the way down, two up, middle
    weights.unlink()
    if kind == "bin":
        torch.save(old, weights.with_suffix(".bin"))
    else:
        save_file(old, weights, metadata={"format": "pt"})
    theirs = UNet2DModel.from_pretrained(folder / "unet").eval()
    assert gap(read_diffusers(str(folder)), theirs) < 1e-5
    assert gap(read_diffusers(str(folder)), published[1]) < 1e-5


SCHEDULES = [
    {},
    {"beta_start": 2e-4, "beta_end": 0.01},
    {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 50, "beta_end": 0.3},
    {"trained_betas": torch.linspace(1e-4, 0.02, 1000).tolist()},
    {"trained_betas": torch.linspace(0.01, 0.2, 40).square().tolist(), "num_train_timesteps": 40},
]


@pytest.mark.parametrize("told", SCHEDULES, ids=lambda told: ",".join(told) or "default")
def test_tables_and_networks_of_every_schedule(tmp_path, told):
    scheduler = ddpm(**told)
    net = saved(tmp_path, scheduler=scheduler)
    generator = read_diffusers(str(tmp_path))
    process, steps = generator.denoiser.process, len(scheduler.alphas_cumprod)
    t = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    ratio = ((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod).sqrt()
    # diffusers' is in float32, where 1 - abar at step 0 has few digits
    torch.testing.assert_close(process.ratio(t), ratio, rtol=1e-3, atol=0.0)
    assert gap(generator, net, steps) < 3e-5
    linear = "schedule" not in "".join(told) and told.get("num_train_timesteps") != 40
    assert isinstance(process, LinearBetas if linear else Table)


def test_betas_on_a_line_are_told_by_its_ends(folder):
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    edit(scheduler, trained_betas=betas)
    process = read_diffusers(str(folder)).denoiser.process
    assert isinstance(process, LinearBetas) and process.steps == 1000
    assert (process.beta_0, process.beta_1) == pytest.approx((1e-4, 0.02), rel=1e-6)
    edit(scheduler, trained_betas=[*betas[:500], betas[500] * 1.001, *betas[501:]])
    assert isinstance(read_diffusers(str(folder)).denoiser.process, Table)


@pytest.mark.parametrize(
    ("told", "kind"), [("epsilon", Eps), ("v_prediction", V), ("sample", Clean)]
)
def test_predictions_mean_what_diffusers_means(tmp_path, told, kind):
    scheduler = ddim(prediction_type=told, clip_sample=False)
    net = saved(tmp_path, scheduler=scheduler)
    generator = read_diffusers(str(tmp_path))
    assert generator.denoiser.parametrization == kind(generator.denoiser.process)
    assert generator.step == Transfer() and gap(generator, net) < 1e-5
    scheduler.set_timesteps(1000)
    x = inputs()
    for i in (1, 400, 950):
        with torch.no_grad():
            theirs = scheduler.step(net(x, i).sample, i, x).pred_original_sample
            ours = generator.denoiser(x, i / 999).x0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def theirs_from(net, scheduler, noise, count):
    """The loop of diffusers' pipelines, with the last state before the pixels; and the steps."""
    scheduler.set_timesteps(count)
    x = noise
    for i in scheduler.timesteps:
        x = scheduler.step(net(x, i).sample, i, x).prev_sample
    return x, scheduler.timesteps.tolist()


@torch.no_grad()
def ours_from(generator, noise, steps, total=1000):
    grid = FixedGrid((tuple(i / (total - 1) for i in steps),))
    # diffusers starts from noise of variance 1, at whatever step
    sigma = generator.denoiser.process.sigma(torch.tensor(grid.times[0][0], dtype=torch.float64))
    return generator.with_sampler(grid=grid)(noise / float(sigma), steps=len(steps), seed=range(3))


@pytest.mark.parametrize(
    ("told", "clip", "spacing", "count"),
    [
        ("epsilon", True, "leading", 7),
        ("epsilon", False, "leading", 10),
        ("epsilon", True, "trailing", 5),
        ("v_prediction", True, "leading", 20),
        ("sample", True, "trailing", 10),
    ],
)
def test_samples_are_those_of_diffusers_ddim(tmp_path, told, clip, spacing, count):
    """In float64: at the noisy end an eps-network's rounding is enlarged 157 times."""
    scheduler = ddim(
        prediction_type=told, clip_sample=clip, clip_sample_range=0.8, timestep_spacing=spacing
    )
    net, noise = saved(tmp_path, scheduler=scheduler).double(), inputs().double()
    expected, steps = theirs_from(net, scheduler, noise, count)
    generator = read_diffusers(str(tmp_path)).double()
    ours = ours_from(generator, noise, steps)
    torch.testing.assert_close(ours, expected, rtol=0.0, atol=1e-4 * float(expected.abs().max()))
    if clip:  # it does something
        free = ours_from(generator.with_sampler(step=Transfer()), noise, steps)
        assert expected.abs().max() == 0.8 and (free - expected).abs().max() > 0.1


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(
    ("kept", "variance"), [("fixed_small", "posterior"), ("fixed_large", "large")]
)
def test_samples_are_those_of_diffusers_ddpm(tmp_path, monkeypatch, clip, kept, variance):
    """On shared noise."""
    scheduler = ddpm(clip_sample=clip, variance_type=kept, prediction_type="v_prediction")
    net = saved(tmp_path, scheduler=scheduler)
    draws = RowNoise(range(3))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: draws.like(inputs())
    )
    expected, steps = theirs_from(net, scheduler, inputs(), 10)
    settings = {"clip": 1.0} if clip else {}
    generator = read_diffusers(str(tmp_path))
    step = Ancestral(variance=variance, **settings)
    ours = ours_from(generator.with_sampler(step=step), inputs(), steps)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_pixels_are_those_of_diffusers_pipeline(tmp_path):
    """The whole of it, from its own noise to its own pixels."""
    from diffusers import DDIMPipeline

    saved(tmp_path)
    pipeline = DDIMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    draw = torch.Generator().manual_seed(5)
    pixels = pipeline(batch_size=3, generator=draw, num_inference_steps=10, output_type="np").images
    noise = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    ours = ours_from(fewstep.load(f"diffusers:{tmp_path}"), noise, range(900, -1, -100))
    expected = 2 * torch.from_numpy(pixels).permute(0, 3, 1, 2) - 1
    torch.testing.assert_close(ours.clamp(-1, 1), expected, rtol=0.0, atol=1e-3)


def test_whether_images_are_clipped_is_the_schedulers_word(folder):
    scheduler = folder / "scheduler" / "scheduler_config.json"

    def step(**changes):
        edit(scheduler, **changes)
        return read_diffusers(str(folder)).step

    assert step() == Transfer(clip=1.0)
    assert step(clip_sample_range=2.5) == Transfer(clip=2.5)
    assert step(clip_sample=False) == Transfer()
    assert step(clip_sample=None, clip_sample_range=None) == Transfer(clip=1.0)
    for name in ("DPMSolverMultistepScheduler", "PNDMScheduler"):  # which never clip
        assert step(_class_name=name) == Transfer()
    edit(scheduler, thresholding=True)
    with pytest.warns(UserWarning, match="thresholding is on, but not supported"):
        read_diffusers(str(folder))


def test_a_checkpoint_kept_as_ours_is_the_same(published, tmp_path):
    generator = fewstep.load(f"diffusers:{published[0]}")
    runs.save_generator(tmp_path / "m.safetensors", generator, None, {})
    again = fewstep.load(tmp_path / "m.safetensors")
    assert again.step == Transfer(clip=1.0)
    assert torch.equal(again(inputs(), steps=3), generator(inputs(), steps=3))
    assert runs.weights_hash(again) == runs.weights_hash(generator)


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]},
        {"down_block_types": ["DownBlock2D"]},
        {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
        {"out_channels": 6},
        {"center_input_sample": True},
        {"time_embedding_type": "fourier"},
        {"time_embedding_dim": 100},
        {"mid_block_scale_factor": 2},
        {"downsample_type": "resnet"},
        {"upsample_type": "resnet"},
        {"act_fn": "gelu"},
        {"attn_norm_num_groups": 4},
        {"resnet_time_scale_shift": "scale_shift"},
        {"class_embed_type": "timestep"},
        {"num_class_embeds": 10},
        {"block_out_channels": []},
        {"norm_num_groups": 0},
        {"sample_size": None},
        {"_class_name": "UNet2DConditionModel"},
    ],
    ids=lambda changes: "=".join(map(str, next(iter(changes.items())))),
)
def test_a_network_that_ours_cannot_be_is_named_by_its_key(folder, changes):
    edit(folder / "unet" / "config.json", **changes)
    told = refusal(folder)
    assert next(iter(changes)) in told and "unet/config.json" in told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"norm_num_groups": 5}, "groups = 5 does not fit"),
        ({"attention_head_dim": 12}, "head_dim = 12 must divide"),
        ({"sample_size": 7}, "7x7 pixels cannot be halved"),
        ({"block_out_channels": [16, 64]}, "is (32,) in the file, but (64,) in a network"),
        ({"layers_per_block": 2}, "is missing in the file"),
        ({"add_attention": False}, "missing in a network"),
    ],
)
def test_settings_that_do_not_go_together_or_with_the_weights(folder, changes, told):
    edit(folder / "unet" / "config.json", **changes)
    assert told in refusal(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_schedule": "sigmoid"},
        {"prediction_type": "flow_prediction"},
        {"predict_epsilon": False},
        {"rescale_betas_zero_snr": True},
        {"num_train_timesteps": 0},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_scheduler_that_we_have_not_is_named_by_its_key(folder, changes):
    edit(folder / "scheduler" / "scheduler_config.json", **changes)
    told = refusal(folder)
    assert next(iter(changes)) in told and "scheduler_config.json" in told


def test_betas_that_make_no_table(folder):
    edit(folder / "scheduler" / "scheduler_config.json", trained_betas=[0.1, 0.0, 0.3])
    assert "its betas are not a noise schedule" in refusal(folder)


def test_damaged_and_missing_files_are_named(folder):
    config = folder / "unet" / "config.json"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:3000])
    assert f"{weights} is damaged" in refusal(folder)
    weights.unlink()
    assert "lacks diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin" in refusal(
        folder
    )
    pickled = weights.with_suffix(".bin")
    for content in (b"", b"nonsense"):
        pickled.write_bytes(content)
        assert f"{pickled} is damaged" in refusal(folder)
    torch.save([1, 2], pickled)
    assert f"{pickled} is damaged or is not a weights file" in refusal(folder)
    torch.save(Spoiler(), pickled)
    assert f"{pickled} is damaged" in refusal(folder)
    weights.write_bytes(whole)
    for content, told in (("{", "damaged or is not JSON"), ("[]", "is not a JSON object")):
        config.write_text(content)
        assert told in refusal(folder)
    config.unlink()
    assert "is no diffusers checkpoint: it lacks config.json" in refusal(folder)


class Spoiler:
    """A pickle that would run code."""

    def __reduce__(self):
        return (pytest.fail, ("it ran",))


def test_reading_needs_no_diffusers(published, monkeypatch):
    for heavy in ("diffusers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, heavy, None)
    read_diffusers(str(published[0]))


def test_nothing_is_warned_of_where_all_is_told(published):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_diffusers(str(published[0]))
