"""The U-Net of DDPM, interchangeable with diffusers' `UNet2DModel`.

Ho et al. 2020, arXiv:2006.11239. Weights load strictly in both directions, and the outputs agree to
rounding. Unlike diffusers' it exports with a dynamic batch and has forward-mode derivatives.
On CPUs it works in the channels-last format, whatever the images come in.

Second derivatives in reverse mode (a gradient penalty through attention) are beyond the fused
attention kernels: call the network under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.blocks import (
    Attention,
    DownBlock,
    Embedding,
    Images,
    MidBlock,
    Parts,
    Resnet,
    UpBlock,
    forward_mode,
)
from fewstep.backbones.embedding import LevelEmbedding, Sinusoid, embed
from fewstep.condition import Condition
from fewstep.errors import InputError


@dataclass(frozen=True)
class UNetConfig(BackboneConfig):
    """The defaults are those of google/ddpm-cifar10-32: 35,746,307 parameters at (3, 32, 32)."""

    channels: tuple[int, ...] = (128, 256, 256, 256)
    """Width of each size of the images; each is half as large as the one before."""
    layers: int = 2
    """Residual layers of each size on the way down; there is one more on the way up."""
    attention: tuple[int, ...] = (16,)
    """Heights in pixels at which the layers attend, such as (16, 8)."""
    middle_attention: bool = True
    """Whether the bottleneck attends."""
    head_dim: int | None = None
    """Channels of an attention head; unset means one head, as in DDPM."""
    groups: int = 32
    """Groups of the normalisation; must divide every width."""
    dropout: float = 0.0
    """Share of activations dropped in each layer while training."""
    two_times: bool = False
    """Also take a destination, for flow maps; starts out with no effect."""
    level_scale: float = 250.0
    """Factor for logarithmic levels (EDM's), so that they span the sinusoid's range."""
    norm_eps: float = 1e-6
    """Added to the variance in normalisations."""
    downsample_padding: Literal[0, 1] = 0
    """0 pads one row and column at the end before halving, as in DDPM; 1 pads all sides."""
    flip_sin_to_cos: bool = False
    """Cosines before sines in the embedding of the level; off in DDPM, on in later networks."""
    freq_shift: float = 1.0
    """Spacing of the embedding's frequencies: 1 in DDPM, 0 in later networks."""
    pace: float = 1.0
    """Factor of the frequencies by which the network is told its level. Less than 1, such as 0.03,
    keeps its derivative along time small, which MeanFlow and sCM learn from."""

    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "UNet":
        """A network for images of `shape` in [-1, 1]; weights come from torch's default generator.

        Raises: InputError if the settings do not fit each other or `shape`.
        """
        return UNet(self, shape=shape, classes=classes)


class UNet(Backbone):
    """Predict one tensor from another of the same size, through ever smaller images and back.

    Initialised as DDPM: Xavier-uniform weights, zero biases; the last layer of every branch and
    of the network is zero, so that at first each layer is its shortcut and the output zero.
    """

    def __init__(self, config: UNetConfig, *, shape: tuple[int, ...], classes: int = 0) -> None:
        super().__init__()
        sizes = checked_sizes(config, shape)
        self.config, self.shape, self.classes = config, shape, classes
        self.level_scale = config.level_scale
        widths = config.channels
        embedding = 4 * widths[0]
        self.sinusoid = Sinusoid(widths[0], config.freq_shift, config.flip_sin_to_cos, config.pace)
        self.time_embedding = LevelEmbedding(widths[0], embedding)
        self.time_embedding_s = LevelEmbedding(widths[0], embedding) if config.two_times else None
        self.class_embedding = nn.Embedding(classes + 1, embedding) if classes else None
        parts = Parts(
            embedding,
            groups=config.groups,
            eps=config.norm_eps,
            dropout=config.dropout,
            head_dim=config.head_dim,
            padding=config.downsample_padding,
        )
        self.conv_in: nn.Module = nn.Conv2d(shape[0], widths[0], 3, padding=1)
        attends = [size in config.attention for size in sizes]
        self.down_blocks = down_blocks(widths, config.layers, attends, parts)
        self.mid_block = MidBlock(widths[-1], parts, attends=config.middle_attention)
        self.up_blocks = up_blocks(widths, config.layers, attends, parts)
        self.conv_norm_out: nn.Module = parts.norm(widths[0])
        self.conv_out: nn.Module = nn.Conv2d(widths[0], shape[0], 3, padding=1)
        initialise(self)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        *,
        level_s: Float[Tensor, " b"] | None = None,
        cond: Condition | None = None,
    ) -> Float[Tensor, "b _ h w"]:
        emb = functional.silu(embed(self, level, level_s, cond))
        *_, hidden = self._climb(x, emb)
        return self.conv_out(functional.silu(self.conv_norm_out(hidden))).contiguous()

    def ascent(
        self, x: Float[Tensor, "b c h w"], level: Float[Tensor, " b"], cond: Condition | None
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """What each size of the way up ends with, smallest first, the last as large as `x`.

        Their widths are `ascent_widths`, their heights the images', halved again and again.
        """
        emb = functional.silu(embed(self, level, None, cond))
        ends = {end.shape[-1]: end for end in self._climb(x, emb)}
        return [*ends.values()]

    @property
    def ascent_widths(self) -> list[int]:
        """Channels of what `ascent` gives."""
        return [*self.config.channels[:0:-1][:-1], self.config.channels[0]]

    def features(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        *,
        cond: Condition | None = None,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """What each size of the way down ends with, largest first, then the bottleneck.

        Their widths are `config.channels` and once more its last.
        """
        emb = functional.silu(embed(self, level, None, cond))
        _, *levels = self._encode(x, emb)
        ends = [outputs[self.config.layers - 1] for outputs in levels]
        return [*ends, self.mid_block(levels[-1][-1], emb)]

    def _climb(self, x: Images, emb: Embedding) -> list[Images]:
        """What each block of the way up gives."""
        skips = list(chain.from_iterable(self._encode(x, emb)))
        given = [self.mid_block(skips[-1], emb)]
        for block in self.up_blocks:
            given.append(block(given[-1], skips, emb))
        return given[1:]

    def _encode(self, x: Images, emb: Embedding) -> list[list[Images]]:
        """The first convolution's output, then each block's."""
        hidden = self.conv_in(x)
        # On CPUs convolutions are faster so, and attention needs no transposing. GPUs would copy
        # at every normalisation, and so would `Norm` in forward mode: there the format stays.
        if x.is_cpu and not forward_mode():
            hidden = hidden.contiguous(memory_format=torch.channels_last)
        levels = [[hidden]]
        for block in self.down_blocks:
            levels.append(block(levels[-1][-1], emb))
        return levels


def down_blocks(
    widths: tuple[int, ...], layers: int, attends: list[bool], parts: Parts
) -> nn.ModuleList:
    blocks = nn.ModuleList()
    for i, width in enumerate(widths):
        widths_in = [widths[max(i - 1, 0)]] + [width] * (layers - 1)
        last = i == len(widths) - 1
        blocks.append(DownBlock(widths_in, width, parts, attends=attends[i], last=last))
    return blocks


def up_blocks(
    widths: tuple[int, ...], layers: int, attends: list[bool], parts: Parts
) -> nn.ModuleList:
    """Mirror the way down: every layer's input is joined by what a layer down there gave."""
    blocks = nn.ModuleList()
    below = widths[-1]
    for i in reversed(range(len(widths))):
        skips = [widths[i]] * layers + [widths[max(i - 1, 0)]]
        inputs = [below] + [widths[i]] * layers
        widths_in = [a + b for a, b in zip(inputs, skips, strict=True)]
        blocks.append(UpBlock(widths_in, widths[i], parts, attends=attends[i], last=i == 0))
        below = widths[i]
    return blocks


def initialise(net: UNet) -> None:
    """DDPM's initial weights, in place."""
    silent: list[nn.Module] = [net.conv_out]
    if net.time_embedding_s is not None:
        silent.append(net.time_embedding_s.linear_2)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
        elif isinstance(module, Resnet):
            silent.append(module.conv2)
        elif isinstance(module, Attention):
            silent.append(module.to_out[0])
    for module in silent:
        for weight in module.parameters():
            nn.init.zeros_(weight)


def checked_sizes(config: UNetConfig, shape: tuple[int, ...]) -> list[int]:
    """The heights of the images on the way down, once it is sure that the network can be built."""
    if len(shape) != 3:
        raise InputError(
            f"a U-Net works on images (channels, height, width), not on {shape}: use the mlp"
        )
    halvings = len(config.channels) - 1
    if any(side % 2**halvings for side in shape[1:]):
        raise InputError(
            f"{shape[1]}x{shape[2]} pixels cannot be halved {halvings} times, as the"
            f" {halvings + 1} entries of channels ask: give fewer"
        )
    sizes = [shape[1] >> i for i in range(halvings + 1)]
    for size in config.attention:
        if size not in sizes:
            raise InputError(
                f"attention at {size} pixels, but the images are {sizes} pixels high on their way"
                " down: choose among these, or attention = []"
            )
    for width in config.channels:
        if width % config.groups or width % 2:
            raise InputError(
                f"groups = {config.groups} does not fit channels = {list(config.channels)}: every"
                " width must be even and a multiple of groups, such as of"
                f" {math.gcd(*config.channels)}"
            )
        if config.head_dim is not None and width % config.head_dim:
            raise InputError(
                f"head_dim = {config.head_dim} must divide every width in"
                f" channels = {list(config.channels)}; leave it out for one head"
            )
    return sizes
