"""The configuration of google/ddpm-cifar10-32 and of its averaged weights, without a network."""

import json
import sys

import pytest
import torch

import fewstep
from fewstep.backbones import UNetConfig
from fewstep.parametrization import Eps
from fewstep.pretrained.diffusers import read_diffusers
from fewstep.pretrained.hub import EMA
from fewstep.pretrained.unet_config import read_network
from fewstep.process import LinearBetas
from fewstep.sampling import Transfer
from fewstep.spacing import TableGrid

NAME = "google/ddpm-cifar10-32"
PARAMETERS = 35_746_307
NETWORK = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}


def test_the_networks_size(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(NETWORK))
    network = read_network(path)
    with torch.device("meta"):
        net = network.unet({}).build(shape=network.shape)
    assert network.shape == (3, 32, 32)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS
    assert net.config == UNetConfig()


@pytest.mark.slow
def test_the_published_networks_load_by_name(home, monkeypatch, capsys):
    """The folder of the hub, flat with its scheduler; averaged weights in unet/ without one."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    net = UNet2DModel.from_config(NETWORK)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS
    folder = home / "weights" / NAME
    net.save_pretrained(folder, safe_serialization=False)
    (folder / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    for heavy in ("diffusers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, heavy, None)
    generator = fewstep.load(f"diffusers:{NAME}")
    assert "averaged" not in capsys.readouterr().err
    assert sum(p.numel() for p in generator.parameters()) == PARAMETERS
    assert generator.denoiser.parametrization == Eps(LinearBetas())
    assert (generator.step, generator.grid) == (Transfer(clip=1.0), TableGrid())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = net.eval()(x, 999).sample
        ours = generator.denoiser(x, 1.0).output
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    with torch.no_grad():
        net.conv_out.bias += 1
    averaged = home / "weights" / EMA
    net.save_pretrained(averaged / "unet")
    ours = read_diffusers(NAME).denoiser(x, 1.0).output
    torch.testing.assert_close(ours, theirs + 1, rtol=0, atol=1e-5)
    line = f"fewstep: {NAME}: using the averaged weights in {averaged}\n"
    assert line in capsys.readouterr().err
