"""Our U-Net as diffusers' `UNet2DModel`, and any other network as a program of `torch.export`."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.backbones import Backbone, UNetConfig
from fewstep.backbones.unet import encoder_heights
from fewstep.condition import NO_LABEL, Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.export.diffusers.exported_network import ExportedNetwork
from fewstep.export.precision import Dtype
from fewstep.guidance import unguided


def unet_config(backbone: Backbone) -> dict[str, Any] | None:
    """The settings of the `UNet2DModel` that is the same network; None if there is none.

    The factor `pace` is left out: it is applied to the levels.
    """
    config = backbone.config
    if type(config) is not UNetConfig or config.two_times:
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


class NetworkProgram(nn.Module):
    """A backbone with plain tensors as its inputs: `inputs` names them in order."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.backbone = deepcopy(unguided(denoiser.backbone))
        self.classes = self.backbone.classes
        self.inputs = ["sample", "timestep"]
        self.inputs += ["timestep_s"] if denoiser.is_flow_map else []
        self.inputs += ["class_labels"] if self.classes else []

    def forward(self, *inputs: Tensor) -> Tensor:
        values = dict(zip(self.inputs, inputs, strict=True))
        cond = None
        if "class_labels" in values:
            labels = values["class_labels"]
            cond = Condition(torch.where(labels == self.classes, NO_LABEL, labels))
        x, level = values["sample"], values["timestep"]
        return self.backbone(x, level, level_s=values.get("timestep_s"), cond=cond)


def export_network(denoiser: Denoiser) -> ExportedNetwork:
    """The network as a program for any number of rows.

    Raises: InputError if it contains an operation that `torch.export` cannot express.
    """
    module = NetworkProgram(denoiser).eval().requires_grad_(False)
    # each a tensor of its own: torch.export takes a tensor that comes twice for one input
    examples = {
        "sample": torch.zeros(2, *module.backbone.shape),
        "timestep": torch.ones(2),
        "timestep_s": torch.zeros(2),
        "class_labels": torch.zeros(2, dtype=torch.int64),
    }
    inputs = tuple(examples[name] for name in module.inputs)
    rows = tuple({0: torch.export.Dim("batch")} for _ in inputs)
    try:
        program = torch.export.export(module, inputs, dynamic_shapes={"inputs": rows})
    except Exception as error:  # of many kinds, with long texts
        problem = str(error).strip().partition("\n")[0]
        raise InputError(f"torch.export cannot express this network: {problem}") from error
    return ExportedNetwork(program, module.inputs)
