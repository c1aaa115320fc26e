"""The U-Net of lucidrains' denoising-diffusion-pytorch.

Residual layers, and attention with a few learned keys and values at every size: at most sizes
linear attention, whose cost grows with the number of pixels and not with its square.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.attention import Images, attention, channels_last_on_cpu, images, tokens
from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.blocks import (
    Embedding,
    Norm,
    Upsample,
    image_heights,
)
from fewstep.backbones.embedding import LevelEmbedding, Sinusoid, embed
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.ranges import NONEMPTY, Channels, DepthOrZero, EvenWidth, Positive, ProbabilityBelowOne


@dataclass(frozen=True)
class LucidrainsUNetConfig(BackboneConfig):
    """Settings of a `LucidrainsUNet`. The defaults are those of the package with `dim=64`."""

    channels: Annotated[tuple[Channels, ...], NONEMPTY] = (64, 64, 128, 256, 512)
    """Channels of the first convolution, then those that each size hands to the next. The first
    size is the image's, and each next one is half as large."""
    width: EvenWidth = 64
    """Width of the level's embedding; a quarter of the width of the network that follows it."""
    full_attention: tuple[bool, ...] = (False, False, False, True)
    """For each size, whether its attention is full; otherwise it is linear attention."""
    heads: tuple[Channels, ...] = (4, 4, 4, 4)
    """Attention heads at each size; the bottleneck has those of the last."""
    head_dim: tuple[Channels, ...] = (32, 32, 32, 32)
    """Channels per head at each size; the bottleneck has those of the last."""
    memory: DepthOrZero = 4
    """Learned keys and values per attention head."""
    groups: Channels | None = None
    """Groups of the residual layers' normalisations, 8 before version 2.0; None normalises the
    channels of each pixel by their root mean square, as later versions do."""
    dropout: ProbabilityBelowOne = 0.0
    """Dropout probability in each layer during training, at least 0 and below 1."""
    two_times: bool = False
    """Whether there is an input for the destination, for flow maps; initially it has no effect."""
    level_scale: Positive = 250.0
    """Factor for logarithmic levels (EDM's), so that they span the range of the embedding."""
    pace: Positive | None = None
    """Factor of the frequencies in the level's features. None is 0.004 for logarithmic levels
    (EDM's) and 1 for others."""

    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "LucidrainsUNet":
        """Build a network for images of `shape` in [-1, 1].

        Initial weights come from torch's default generator.

        Raises: InputError if the settings do not fit each other or `shape`.
        """
        return LucidrainsUNet(self, shape=shape, classes=classes)


class RMSNorm(nn.Module):
    """Divide the channels of each pixel by their root mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Images) -> Images:
        return functional.normalize(x, dim=1) * (self.g * math.sqrt(x.shape[1]))


class ConvBlock(nn.Module):
    """Convolution, normalisation, an optional scale and shift, SiLU, dropout."""

    def __init__(self, width_in: int, width: int, groups: int | None, dropout: float = 0.0) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width_in, width, 3, padding=1)
        self.norm = RMSNorm(width) if groups is None else Norm(groups, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Images, scale_shift: Images | None = None) -> Images:
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            scale, shift = scale_shift.chunk(2, dim=1)
            x = x * (scale + 1) + shift
        return self.dropout(functional.silu(x))


class ResnetLayer(nn.Module):
    """Residual layer of two blocks; the embedding sets the scale and shift of the first."""

    def __init__(self, width_in: int, width: int, config: LucidrainsUNetConfig) -> None:
        super().__init__()
        self.emb_proj = nn.Linear(4 * config.width, 2 * width)
        self.block1 = ConvBlock(width_in, width, config.groups, config.dropout)
        self.block2 = ConvBlock(width, width, config.groups)
        self.res_conv = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Images, emb: Embedding) -> Images:
        hidden = self.block2(self.block1(x, self.emb_proj(emb)[:, :, None, None]))
        return hidden + (x if self.res_conv is None else self.res_conv(x))


class MemoryAttention(nn.Module):
    """Full attention over pixels and a few learned keys and values; x is added to its result."""

    def __init__(self, width: int, heads: int, head_dim: int, memory: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = RMSNorm(width)
        self.mem_kv = nn.Parameter(torch.randn(self.memory_shape(heads, memory, head_dim)))
        self.to_qkv = nn.Conv2d(width, 3 * heads * head_dim, 1, bias=False)
        self.to_out = self.output(heads * head_dim, width)

    def forward(self, x: Images) -> Images:
        q, k, v = tokens(self.to_qkv(self.norm(x)), 3 * self.heads).chunk(3, dim=1)
        memory_k, memory_v = (m.expand(x.shape[0], -1, -1, -1) for m in self.memory())
        k, v = torch.cat([memory_k, k], dim=2), torch.cat([memory_v, v], dim=2)
        return x + self.to_out(images(self.attend(q, k, v), like=x))

    def memory(self) -> Float[Tensor, "2 heads m d"]:
        """The learned keys and values."""
        return self.mem_kv

    def memory_shape(self, heads: int, memory: int, head_dim: int) -> tuple[int, ...]:
        """Shape of the parameter of learned keys and values."""
        return 2, heads, memory, head_dim

    def output(self, width_in: int, width: int) -> nn.Module:
        """The layer after the attention."""
        return nn.Conv2d(width_in, width, 1)

    def attend(
        self,
        q: Float[Tensor, "b heads n d"],
        k: Float[Tensor, "b heads m d"],
        v: Float[Tensor, "b heads m d"],
    ) -> Float[Tensor, "b heads n d"]:
        """The values, averaged by the similarity of queries and keys."""
        return attention(q, k, v)


class LinearAttention(MemoryAttention):
    """Attention `softmax(q) (softmax(k)^T v)`.  Shen et al. 2018, arXiv:1812.01243."""

    def memory(self) -> Float[Tensor, "2 heads m d"]:
        """The learned keys and values, which are stored with channels first."""
        return self.mem_kv.mT

    def memory_shape(self, heads: int, memory: int, head_dim: int) -> tuple[int, ...]:
        """Shape of the parameter of learned keys and values."""
        return 2, heads, head_dim, memory

    def output(self, width_in: int, width: int) -> nn.Module:
        """The layer after the attention, which is normalised."""
        return nn.Sequential(nn.Conv2d(width_in, width, 1), RMSNorm(width))

    def attend(
        self,
        q: Float[Tensor, "b heads n d"],
        k: Float[Tensor, "b heads m d"],
        v: Float[Tensor, "b heads m d"],
    ) -> Float[Tensor, "b heads n d"]:
        """Softmax of queries over channels, and of keys over positions."""
        context = torch.softmax(k, dim=2).mT @ v
        return (torch.softmax(q, dim=3) * q.shape[-1] ** -0.5) @ context


class Stage(nn.Module):
    """The layers of one size: two residual layers, attention, and a change of size."""

    def __init__(
        self, widths_in: tuple[int, int], width: int, config: LucidrainsUNetConfig, index: int
    ) -> None:
        super().__init__()
        first, second = widths_in
        self.resnet1 = ResnetLayer(first, width, config)
        self.resnet2 = ResnetLayer(second, width, config)
        kind = MemoryAttention if config.full_attention[index] else LinearAttention
        self.attention = kind(width, config.heads[index], config.head_dim[index], config.memory)
        self.resample: nn.Module = nn.Identity()


class DownStage(Stage):
    """A size of the encoder. Returns the outputs of its two layers, and the next size's input."""

    def forward(self, x: Images, emb: Embedding) -> list[Images]:
        first = self.resnet1(x, emb)
        second = self.attention(self.resnet2(first, emb))
        return [first, second, self.resample(second)]


class UpStage(Stage):
    """A size of the decoder; the inputs of its layers are concatenated with outputs of `skips`."""

    def forward(self, x: Images, skips: list[Images], emb: Embedding) -> Images:
        x = self.resnet1(torch.cat([x, skips.pop()], dim=1), emb)
        x = self.resnet2(torch.cat([x, skips.pop()], dim=1), emb)
        return self.resample(self.attention(x))


class LucidrainsUNet(Backbone):
    """Convolutional encoder and decoder with skip connections.

    The initial weights are torch's, as in lucidrains' package.
    """

    def __init__(
        self, config: LucidrainsUNetConfig, *, shape: tuple[int, ...], classes: int = 0
    ) -> None:
        super().__init__()
        _check(config, shape)
        self.config, self.shape, self.classes = config, shape, classes
        self.level_scale = config.level_scale
        first, last, embedding = config.channels[0], config.channels[-1], 4 * config.width
        sizes = len(config.channels) - 1
        self.sinusoid = Sinusoid(config.width, pace=config.pace)
        self.time_embedding = LevelEmbedding(config.width, embedding, functional.gelu)
        self.time_embedding_s = (
            LevelEmbedding(config.width, embedding, functional.gelu) if config.two_times else None
        )
        self.class_embedding = nn.Embedding(classes + 1, embedding) if classes else None
        self.augment_embedding: nn.Linear | None = None
        self.init_conv = nn.Conv2d(shape[0], first, 7, padding=3)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for index, (width, after) in enumerate(pairwise(config.channels)):
            down = DownStage((width, width), width, config, index)
            up = UpStage((width + after, width + after), after, config, index)
            down.resample = nn.Conv2d(width, after, 3, padding=1)
            up.resample = nn.Conv2d(after, width, 3, padding=1)
            if index < sizes - 1:
                down.resample = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * width, after, 1))
            if index > 0:
                up.resample = Upsample(after, width)
            self.downs.append(down)
            self.ups.insert(0, up)
        self.mid_block1 = ResnetLayer(last, last, config)
        self.mid_attn = MemoryAttention(last, config.heads[-1], config.head_dim[-1], config.memory)
        self.mid_block2 = ResnetLayer(last, last, config)
        self.final_res_block = ResnetLayer(2 * first, first, config)
        self.final_conv = nn.Conv2d(first, shape[0], 1)
        if self.time_embedding_s is not None:
            nn.init.zeros_(self.time_embedding_s.linear_2.weight)
            nn.init.zeros_(self.time_embedding_s.linear_2.bias)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        *,
        level_s: Float[Tensor, " b"] | None = None,
        cond: Condition | None = None,
    ) -> Float[Tensor, "b _ h w"]:
        emb = functional.silu(embed(self, level, level_s, cond))
        first, skips, hidden = self._encode(x, emb)
        for stage in self.ups:
            hidden = stage(hidden, skips, emb)
        hidden = self.final_res_block(torch.cat([hidden, first], dim=1), emb)
        return self.final_conv(hidden).contiguous()

    def features(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        *,
        cond: Condition | None = None,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """The encoder's last activations at each size, largest first, then the bottleneck's.

        Their channels are `config.channels`.
        """
        _, skips, bottleneck = self._encode(x, functional.silu(embed(self, level, None, cond)))
        return [*skips[1::2], bottleneck]

    def _encode(self, x: Images, emb: Embedding) -> tuple[Images, list[Images], Images]:
        """The output of the first convolution, of the layers of each size, and the bottleneck."""
        first = hidden = self.init_conv(channels_last_on_cpu(x))
        skips: list[Tensor] = []
        for stage in self.downs:
            *outputs, hidden = stage(hidden, emb)
            skips.extend(outputs)
        hidden = self.mid_attn(self.mid_block1(hidden, emb))
        return first, skips, self.mid_block2(hidden, emb)


def _check(config: LucidrainsUNetConfig, shape: tuple[int, ...]) -> None:
    """Raise InputError if the network cannot be built."""
    sizes = len(config.channels) - 1
    image_heights(config.channels, shape, halvings=sizes - 1)
    for name in ("full_attention", "heads", "head_dim"):
        if len(getattr(config, name)) != sizes:
            raise InputError(
                f"{name} has {len(getattr(config, name))} entries, but there are {sizes} sizes: "
                "give one for each size"
            )
    for width in config.channels:
        if config.groups is not None and width % config.groups:
            raise InputError(
                f"{width} channels cannot be split into {config.groups} groups: change groups or "
                "channels"
            )
    if config.width % 2 or config.width < 4:
        raise InputError(f"width is {config.width}, but must be even and at least 4")
