"""diffusers' own networks are the truth; it writes the folders on the spot."""

import json
import shutil
import sys
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import fewstep
from ddpm_folders import SIZE, edit, inputs, network, saved, scheduler
from fewstep.errors import InputError
from fewstep.parametrization import Eps
from fewstep.pretrained.diffusers import read_diffusers
from fewstep.pretrained.unet_config import OTHERS
from fewstep.process import LinearBetas
from fewstep.spacing import TableGrid

OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@torch.no_grad()
def gap(generator, net, steps=1000, channels=3, label=None):
    """The largest difference between outputs at steps of the table: t = i/(T - 1) is step i."""
    x, worst = inputs(channels=channels), 0.0
    cond = None if label is None else fewstep.Condition(label)
    for i in (0, 1, 7, steps // 2, steps - 2, steps - 1):
        ours = generator.denoiser(x, i / (steps - 1), cond=cond).output
        theirs = net(x, i, class_labels=label).sample
        assert theirs.std() > 0.3
        worst = max(worst, float((ours - theirs).abs().max()))
    return worst


def refusal(folder):
    with pytest.raises(InputError) as line:
        read_diffusers(str(folder))
    assert "\n" not in str(line.value)
    return str(line.value)


def test_the_network_says_what_diffusers_says_at_every_step(published):
    folder, net = published
    generator = fewstep.load(f"diffusers:{folder}")
    assert gap(generator, net) < 1e-5
    assert generator.spec == fewstep.SampleSpec((3, SIZE, SIZE))
    assert generator.denoiser.process == LinearBetas()
    assert generator.denoiser.parametrization == Eps(LinearBetas())
    assert generator.grid == TableGrid()
    assert not generator.training and not any(p.requires_grad for p in generator.parameters())


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
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    own = ("_class_name", "sample_size", "norm_num_groups", "layers_per_block")
    settings = {k: v for k, v in config.items() if k in own or "block" in k and "mid" not in k}
    settings |= {
        "down_block_types": ["UNetResDownBlock2D", "UNetResAttnDownBlock2D"],
        "decay": 0.9999,
    }
    (tmp_path / "unet" / "config.json").write_text(json.dumps(settings))
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


@pytest.mark.parametrize(
    "changes",
    [
        {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]},
        {"down_block_types": ["DownBlock2D"]},
        {"up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
        {"out_channels": 4},
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
        {"num_class_embeds": 0},
        {"block_out_channels": []},
        {"norm_num_groups": 0},
        {"sample_size": None},
    ],
    ids=lambda changes: "=".join(map(str, next(iter(changes.items())))),
)
def test_a_network_that_ours_cannot_be_is_named_by_its_key(folder, changes):
    edit(folder / "unet" / "config.json", **changes)
    line = refusal(folder)
    assert next(iter(changes)) in line and "unet/config.json" in line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"norm_num_groups": 5}, "groups = 5 does not fit"),
        ({"attention_head_dim": 12}, "head_dim = 12 must divide"),
        ({"sample_size": 7}, "7x7 pixels cannot be halved"),
        ({"block_out_channels": [16, 64]}, "is (32,) in the file, but (64,) in a network"),
        ({"layers_per_block": 2}, "is missing in the file"),
        ({"add_attention": False}, "missing in a network"),
    ],
)
def test_settings_that_do_not_go_together_or_with_the_weights(folder, changes, line):
    edit(folder / "unet" / "config.json", **changes)
    assert line in refusal(folder)


@torch.no_grad()
def test_of_a_learned_variance_the_noise_is_read(tmp_path):
    """As DDPMScheduler does with variance_type = "learned_range"."""
    net = saved(tmp_path, network(out_channels=6), scheduler(variance_type="learned_range"))
    generator = read_diffusers(str(tmp_path))
    theirs = net(inputs(), 500).sample[:, :3]
    ours = generator.denoiser(inputs(), 500 / 999).output
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [*OTHERS, "SomethingNew"])
def test_another_network_is_described(folder, name):
    edit(folder / "unet" / "config.json", _class_name=name)
    line = refusal(folder)
    kind = OTHERS.get(name, "not a U-Net that fewstep reads")
    assert f"config.json: _class_name is {name!r}, {kind}; fewstep reads UNet2DModel" in line


def test_pipelines_that_are_not_on_pixels_are_refused(folder):
    index = folder / "model_index.json"
    index.write_text(json.dumps({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}))
    assert f"{folder} is a LDMPipeline: its network works on the latents" in refusal(folder)
    shutil.rmtree(folder / "unet")
    index.write_text(json.dumps({"_class_name": "FluxPipeline"}))
    line = refusal(folder)
    assert line == (
        f"{folder} is a FluxPipeline, and fewstep reads pipelines with a UNet2DModel in unet/"
    )


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A class-conditional network, and its folder."""
    folder = tmp_path_factory.mktemp("classes") / "ddpm"
    return folder, saved(folder, network(num_class_embeds=5))


LABEL = torch.tensor([4, 0, 2])


def test_classes_are_those_of_diffusers(classes):
    folder, net = classes
    generator = read_diffusers(str(folder))
    assert generator.spec == fewstep.SampleSpec((3, SIZE, SIZE), classes=5)
    assert gap(generator, net, label=LABEL) < 1e-5
    mean = generator.denoiser.backbone.class_embedding.weight[-1]
    torch.testing.assert_close(mean, net.class_embedding.weight.mean(0))
    assert generator(inputs(), steps=2).isfinite().all()


@torch.no_grad()
def test_the_last_class_can_be_no_class(classes):
    folder, net = classes
    generator = read_diffusers(f"{folder}?null_class=last")
    assert generator.spec.classes == 4
    label = torch.tensor([3, 0, 2])
    assert gap(generator, net, label=label) < 1e-5
    ours = generator.denoiser(inputs(), 0.5).output
    theirs = net(inputs(), torch.tensor(499.5), class_labels=torch.full((3,), 4)).sample
    assert float((ours - theirs).abs().max()) < 1e-5


def test_no_class_needs_classes(published):
    with pytest.raises(InputError, match="null_class=last needs num_class_embeds of at least 2"):
        read_diffusers(f"{published[0]}?null_class=last")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("nul_class=last", "unknown option 'nul_class' in .*; did you mean null_class"),
        ("null_class=first", "null_class=first in .* is not supported: Input should be 'mean' or"),
        ("sample_size=big", "sample_size=big in .* is not supported"),
    ],
)
def test_options_are_checked(published, options, line):
    with pytest.raises(InputError, match=line):
        read_diffusers(f"{published[0]}?{options}")


def test_an_address_completes_and_corrects_the_files(folder, published):
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "sample_size": None}))
    generator = read_diffusers(
        f"{folder}?sample_size=16&prediction_type=v_prediction&timestep_spacing=trailing"
        "&clip_sample=false"
    )
    assert generator.spec.shape == (3, 16, 16)
    assert type(generator.denoiser.parametrization).__name__ == "V"
    assert generator.grid == TableGrid(spacing="trailing")
    assert generator.step.clip is None
    assert gap(generator, published[1]) < 1e-5


def test_reading_needs_no_diffusers(published, monkeypatch):
    for heavy in ("diffusers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, heavy, None)
    read_diffusers(str(published[0]))


def test_nothing_is_warned_of_where_the_files_are_complete(published):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_diffusers(str(published[0]))
