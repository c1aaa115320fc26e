"""Our U-Net as diffusers' `UNet2DModel`, and any other network as a program of `torch.export`."""

from typing import Any

import torch

from fewstep.backbones import Backbone, UNetConfig
from fewstep.backbones.unet import encoder_heights
from fewstep.export.diffusers.exported_network import ExportedNetwork
from fewstep.export.pytorch import StoredWeights
from fewstep.export.source import Source
from fewstep.export.tracing import Network, trace
from fewstep.generator import Generator
from fewstep.guidance import unguided
from fewstep.stored_weights import Dtype


def unet_config(backbone: Backbone) -> dict[str, Any] | None:
    """The settings of the `UNet2DModel` that is the same network; None if there is none.

    The factor `pace` is left out: it is applied to the levels.
    """
    config = backbone.config
    if type(config) is not UNetConfig or config.two_times or config.patch > 1 or backbone.text:
        return None
    heights = encoder_heights(config, backbone.shape)
    blocks = ["Attn" if height in config.attention else "" for height in heights]
    channels, height, width = backbone.shape
    return {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": channels,
        "freq_shift": config.freq_shift,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "down_block_types": tuple(f"{block}DownBlock2D" for block in blocks),
        "up_block_types": tuple(f"{block}UpBlock2D" for block in reversed(blocks)),
        "block_out_channels": tuple(config.channels),
        "layers_per_block": config.layers,
        "downsample_padding": config.downsample_padding,
        "dropout": config.dropout,
        "attention_head_dim": config.head_dim,
        "norm_num_groups": config.groups,
        "norm_eps": config.norm_eps,
        "add_attention": config.middle_attention,
        "num_class_embeds": backbone.classes + 1 if backbone.classes else None,
    }


def make_unet(backbone: Backbone, settings: dict[str, Any], dtype: Dtype) -> Any:
    """The `UNet2DModel` with the backbone's weights, in `dtype`."""
    from diffusers import UNet2DModel

    with torch.random.fork_rng():  # its initial weights are random
        unet: Any = UNet2DModel(**settings)
    unet.load_state_dict(backbone.state_dict())
    return unet.to(torch.float16 if dtype == "f16" else torch.float32).eval()


def export_network(generator: Generator, dtype: Dtype) -> ExportedNetwork:
    """The network as a program for any number of rows, with its weights stored in `dtype`.

    Raises: InputError if it contains an operation that `torch.export` cannot express.
    """
    network = Network(generator)
    module = network if dtype == "f32" else StoredWeights(network, dtype)
    program = trace(module, network.example_inputs(2))
    return ExportedNetwork(program, network.input_names, generator.spec.classes)


def load_options(source: Source) -> dict[str, str]:
    """Options of `from_pretrained` that load the weights of a folder."""
    settings = unet_config(unguided(source.generator.denoiser.backbone))
    return {"variant": "fp16"} if source.dtype == "f16" and settings else {}
