"""Settings and weights of diffusers' `UNet2DModel`, as those of our U-Net."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from fewstep.backbones import UNetConfig
from fewstep.errors import InputError
from fewstep.pretrained.folder import read_json, read_tensors
from fewstep.pretrained.settings import read_settings

ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention weights in old checkpoints, and their current names."""
CLASSES = "class_embedding.weight"
OUTPUT = {"conv_out.weight", "conv_out.bias"}
FIRST = "conv_in.weight"
"""A tensor that every such network has once."""

Down = Literal["DownBlock2D", "AttnDownBlock2D", "UNetResDownBlock2D", "UNetResAttnDownBlock2D"]
Up = Literal["UpBlock2D", "AttnUpBlock2D", "UNetResUpBlock2D", "UNetResAttnUpBlock2D"]


@dataclass(frozen=True)
class Network:
    """Settings of a UNet2DModel, with diffusers' defaults.

    The types allow only values that our U-Net supports.
    """

    sample_size: PositiveInt | tuple[PositiveInt, PositiveInt]
    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[Down, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[Up, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (
        224,
        448,
        672,
        896,
    )
    layers_per_block: PositiveInt = 2
    mid_block_scale_factor: Literal[1] = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv"] = "conv"
    upsample_type: Literal["conv"] = "conv"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: PositiveInt | None = 8
    norm_num_groups: PositiveInt = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: PositiveInt | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        size = self.sample_size
        return (self.in_channels, *((size, size) if isinstance(size, int) else size))

    def find_conflict(self) -> tuple[str, str] | None:
        """The first setting that our U-Net cannot combine with the others, and its valid value."""
        widths, attends = self.block_out_channels, ["Attn" in b for b in self.down_block_types]
        mirrored = ["Attn" in block for block in reversed(self.up_block_types)]
        rules = {
            "out_channels": (
                self.out_channels in (self.in_channels, 2 * self.in_channels),
                "as many as in_channels, or twice as many with a learned variance",
            ),
            "down_block_types": (len(attends) == len(widths), "as long as block_out_channels"),
            "up_block_types": (mirrored == attends, "the mirror image of down_block_types"),
            "time_embedding_dim": (
                self.time_embedding_dim in (None, 4 * widths[0]),
                "4 times the first of block_out_channels",
            ),
            "attn_norm_num_groups": (
                self.attn_norm_num_groups in (None, self.norm_num_groups),
                "as many as norm_num_groups",
            ),
        }
        return next(((key, rule) for key, (fits, rule) in rules.items() if not fits), None)

    def unet(self, changes: Mapping[str, float]) -> UNetConfig:
        """The config of our U-Net that builds the same network, with `changes` of its fields."""
        height = self.shape[1]
        config = UNetConfig(
            channels=self.block_out_channels,
            layers=self.layers_per_block,
            attention=tuple(
                height >> i for i, block in enumerate(self.down_block_types) if "Attn" in block
            ),
            middle_attention=self.add_attention,
            head_dim=self.attention_head_dim,
            groups=self.norm_num_groups,
            dropout=self.dropout,
            norm_eps=self.norm_eps,
            downsample_padding=self.downsample_padding,
            flip_sin_to_cos=self.flip_sin_to_cos,
            freq_shift=self.freq_shift,
        )
        return replace(config, **cast(dict[str, Any], changes))


OTHERS = {
    "UNet2DConditionModel": "a U-Net with a text condition, as in Stable Diffusion",
    "UNet1DModel": "a network of sequences",
    "UNet3DConditionModel": "a U-Net of videos",
    "UNetMotionModel": "a U-Net of videos",
    "UNetSpatioTemporalConditionModel": "a U-Net of videos",
    "Transformer2DModel": "a transformer on latents",
    "DiTTransformer2DModel": "a transformer on latents",
    "AutoencoderKL": "an autoencoder, not a diffusion model",
    "AutoencoderTiny": "an autoencoder, not a diffusion model",
    "VQModel": "an autoencoder, not a diffusion model",
    "ControlNetModel": "a network that controls another one",
}
"""Networks of diffusers that are not supported, and what they are."""


def read_network(path: Path, sample_size: int | None = None) -> Network:
    """The settings in a network's config file, with another `sample_size` unless that is None.

    Raises: InputError for another kind of network, or settings that our U-Net does not support.
    """
    check_class(path)
    values = read_json(path)
    if sample_size is not None:
        values["sample_size"] = sample_size
    elif values.get("sample_size") is None:
        raise InputError(
            f"{path} has no setting sample_size, the image's size in pixels: add it, or write "
            "diffusers:FOLDER?sample_size=32"
        )
    network = read_settings(Network, values, path)
    conflict = network.find_conflict()
    if conflict:
        key, expected = conflict
        value = getattr(network, key)
        raise InputError(f"{path}: {key} is {value!r}, but must be {expected} here")
    return network


def check_class(path: Path) -> None:
    """Raise InputError for the config file of another network than a UNet2DModel."""
    name = read_json(path).get("_class_name", "UNet2DModel")
    if name != "UNet2DModel":
        kind = OTHERS.get(str(name), "not a U-Net that fewstep reads")
        raise InputError(
            f"{path}: _class_name is {name!r}, {kind}; fewstep reads UNet2DModel: images in "
            "pixels, with class labels or without"
        )


def network_tensors(
    paths: tuple[Path, ...], network: Network, *, null_is_last: bool
) -> dict[str, Tensor]:
    """The tensors in weights files, by the names and with the shapes of our U-Net.

    A class embedding gets a row for no class, the mean of all classes, unless it is its last row.
    Of outputs that predict the noise and its variance, those of the noise remain.
    """
    tensors = read_tensors(paths)
    # wrappers of torch, such as DataParallel and torch.compile, put their names before all others
    wrapper = next((name.removesuffix(FIRST) for name in tensors if name.endswith(FIRST)), "")
    state = {_current_name(k.removeprefix(wrapper)): value for k, value in tensors.items()}
    if network.out_channels == 2 * network.in_channels:
        for name in OUTPUT & state.keys():
            state[name] = state[name][: network.in_channels]
    rows = state.get(CLASSES)
    if rows is not None and not null_is_last:
        mean = rows.float().mean(0, keepdim=True)
        state[CLASSES] = torch.cat([rows, mean.to(rows.dtype)])
    return state


def _current_name(name: str) -> str:
    old = "|".join(ATTENTION)
    return re.sub(rf"(?<=\.)({old})(?=\.\w+$)", lambda match: ATTENTION[match[0]], name)
