"""Autoencoders of diffusers: the same latents and images as diffusers' own, and pinned runs."""

import json
from contextlib import closing
from pathlib import Path

import pytest
import torch

from fewstep import runs
from fewstep.autoencoder_files import load_autoencoder
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.noise import noise_from_seeds
from fewstep.recipe import read
from fewstep.runner import run_recipe

diffusers = pytest.importorskip("diffusers")
SHAPE = (3, 16, 16)


def kl(**settings):
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2}
    blocks |= {"up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 8)}
    return diffusers.AutoencoderKL(**blocks, norm_num_groups=4, **settings)


def tiny():
    sizes = {"encoder_block_out_channels": (8, 8, 8), "decoder_block_out_channels": (8, 8, 8)}
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    return diffusers.AutoencoderTiny(**sizes, **blocks)


def save(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("inner", ["", "vae"])
@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (kl, {}),
        (kl, {"scaling_factor": 0.5, "shift_factor": 0.1}),
        (kl, {"latents_mean": (0.1, 0.2, 0.3, 0.4), "latents_std": (1.0, 2.0, 3.0, 4.0)}),
        (tiny, {}),
    ],
)
def test_encode_and_decode_are_those_of_diffusers(build, settings, inner, tmp_path):
    torch.manual_seed(0)
    model = build(**settings).eval()
    save(model, tmp_path / inner)
    ours = load_autoencoder(f"diffusers:{tmp_path}", shape=SHAPE)
    images = torch.rand(3, *SHAPE) * 2 - 1
    with torch.no_grad():
        output = model.encode(images)
        raw = output.latent_dist.mode() if build is kl else output.latents
        if "latents_mean" in settings:
            mean, std = (torch.tensor(settings[k]).view(4, 1, 1) for k in settings)
            expected = (raw - mean) / std
        else:
            factor = model.config.scaling_factor
            expected = (raw - (model.config.shift_factor or 0)) * factor
        decoded = model.decode(raw).sample
    latents = ours.encode(images)
    assert latents.shape[1:] == ours.latent_shape
    torch.testing.assert_close(latents, expected)
    torch.testing.assert_close(ours.decode(latents), decoded, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_names_its_autoencoder_by_hash(tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, *SHAPE), dtype=torch.uint8, generator=generator)
    from fewstep.data import ImageSet

    monkeypatch.setattr("fewstep.data.load", lambda name, **_: ImageSet(name, images))
    torch.manual_seed(0)
    vae = save(kl(), tmp_path / "vae")
    words = ["fit.steps=2", "fit.batch=4", "fit.warmup=0", f"data.autoencoder=diffusers:{vae}"]
    small = "student.backbone={name='unet', channels=[8], groups=4, attention=[]}"
    recipe = read("digits-flow", [small, *words])
    with closing(run_recipe(recipe, tmp_path / "run")) as steps:
        list(steps)
    found = runs.load(tmp_path / "run")
    noise = noise_from_seeds(range(2), found.spec.shape)
    assert found(noise, steps=2).shape == (2, *SHAPE)
    assert not [name for name in found.state_dict() if name.startswith("decoder.network")]
    assert main(["export", str(tmp_path / "run"), "--to", "torch", "--out", f"{tmp_path}/e"]) == 2
    torch.manual_seed(1)
    save(kl(), tmp_path / "vae")
    with pytest.raises(InputError, match="is not the one that it was trained with"):
        runs.load(tmp_path / "run")
    (tmp_path / "vae").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"has no config.json of an autoencoder"):
        runs.load(tmp_path / "run")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"scaling_factor": 0.0}, "scaling_factor = 0.0"),
        ({"scaling_factor": None}, "scaling_factor = None"),
        ({"scaling_factor": "a"}, "scaling_factor = a"),
        ({"shift_factor": [1, 2]}, r"shift_factor = \[1, 2\]"),
        ({"latents_mean": [0.0], "latents_std": [1.0]}, "each must be 4 finite numbers"),
        ({"latents_mean": [0.0] * 4, "latents_std": [0.0] * 4}, "no standard deviation 0"),
    ],
)
def test_settings_that_cannot_normalise_are_refused(tmp_path, settings, words):
    config = Path(save(kl(), tmp_path / "vae")) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **settings}))
    with pytest.raises(InputError, match=words):
        load_autoencoder(f"diffusers:{tmp_path}/vae", shape=SHAPE)


def test_what_is_no_autoencoder_is_refused_in_one_line(tmp_path):
    torch.manual_seed(0)
    vae = save(kl(), tmp_path / "vae")
    for address, shape, words in (
        (f"diffusers:{tmp_path}/nothing", SHAPE, "has no config.json"),
        (f"diffusers:{vae}", (1, 16, 16), "3 channels"),
        (f"diffusers:{vae}", (3, 15, 15), "multiples of 2"),
        (f"diffusers:{vae}", None, "needs the shape"),
        ("edm:x", SHAPE, "no such file"),
    ):
        with pytest.raises(InputError, match=words):
            load_autoencoder(address, shape=shape)
    config = Path(vae) / "config.json"
    for text, words in (
        ('{"_class_name": "UNet2DModel"}', "is a UNet2DModel"),
        ("[]", "not a JSON object"),
        ('{"_class_name": "AutoencoderKL", "block_out_channels": 3}', "diffusers cannot load"),
    ):
        config.write_text(text)
        with pytest.raises(InputError, match=words):
            load_autoencoder(f"diffusers:{vae}", shape=SHAPE)
