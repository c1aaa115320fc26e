"""Folders of small DDPMs, written on the spot by diffusers' own classes."""

import json

import torch

SIZE = 8


def network(**changes):
    """A small UNet2DModel in which every weight has an effect, one head at 4 pixels."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    settings = {
        "sample_size": SIZE,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": None,
        **changes,
    }
    net = UNet2DModel(**settings)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return net.eval()


def scheduler(name="DDPM", **settings):
    """A scheduler of diffusers by the start of its class's name."""
    import diffusers

    return getattr(diffusers, f"{name}Scheduler")(**settings)


def saved(folder, net=None, noise_schedule=None, **options):
    """Save a folder as DDPMPipeline does, with any scheduler; returns the network."""
    from diffusers import DDPMPipeline

    net = net or network()
    DDPMPipeline(net, noise_schedule or scheduler()).save_pretrained(folder, **options)
    return net


def edit(path, **changes):
    """Change keys of a JSON file; None removes one."""
    settings = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def inputs(rows=3, channels=3):
    draw = torch.Generator().manual_seed(2)
    return torch.randn(rows, channels, SIZE, SIZE, generator=draw)


@torch.no_grad()
def theirs_from(net, noise_schedule, noise, count, **condition):
    """The loop of diffusers' pipelines, with the last state before the pixels; and the steps."""
    noise_schedule.set_timesteps(count)
    x = noise * getattr(noise_schedule, "init_noise_sigma", 1.0)
    for t in noise_schedule.timesteps:
        scaled = x
        if hasattr(noise_schedule, "scale_model_input"):
            scaled = noise_schedule.scale_model_input(x, t)
        x = noise_schedule.step(net(scaled, t, **condition).sample, t, x).prev_sample
    return x, noise_schedule.timesteps.tolist()


def settings_of(folder):
    """The file of a folder's scheduler."""
    return folder / "scheduler" / "scheduler_config.json"


def name_of(value):
    """The name of a test's parameter: the settings in it."""
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()) or "default"
    return str(value) if isinstance(value, str) else ""
