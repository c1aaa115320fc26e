"""Blocks of the U-Net, with the same parameter names as diffusers' `UNet2DModel`.

They compute the same functions as diffusers' blocks with fewer operations: where two linear layers
follow each other without a nonlinearity, the product of their weights is computed first. Attention
reads the weights and biases of its layers and never calls the layers; add adapters (LoRA) to them
with `torch.nn.utils.parametrize`.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.attention import (
    Images,
    attention,
    group_norm,
    images,
    pointwise,
    tokens,
)
from fewstep.backbones.text import CrossAttention, TextContext, TextTransformer
from fewstep.errors import InputError

Embedding = Float[Tensor, "b e"]


@dataclass(frozen=True)
class BlockOptions:
    """Settings that all blocks of one network share."""

    embedding: int
    groups: int
    eps: float
    dropout: float
    head_dim: int | None
    padding: int
    text_width: int = field(default=0, kw_only=True)
    """Width of the tokens of prompts; 0 for a network without text."""

    def norm(self, width: int) -> "Norm":
        return Norm(self.groups, width, self.eps)

    def attentions(self, width: int, count: int, *, attends: bool) -> nn.ModuleList:
        """A module for each of `count` layers of a block: attention if `attends`, else identity."""
        return nn.ModuleList(
            Attention(width, self) if attends else nn.Identity() for _ in range(count)
        )

    def cross_attentions(self, width: int, count: int, *, reads: bool) -> nn.ModuleList | None:
        """Attention to prompts for each of `count` layers of a block; None unless it `reads`."""
        if not reads:
            return None
        return nn.ModuleList(
            CrossAttention(width, self.text_width, self.norm(width)) for _ in range(count)
        )


class Norm(nn.GroupNorm):
    """A layer of `group_norm`."""

    def forward(self, input: Images) -> Images:
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


class Resnet(nn.Module):
    """Residual block of two convolutions after normalisations; the embedding is added between."""

    def __init__(self, width_in: int, width: int, options: BlockOptions) -> None:
        super().__init__()
        self.norm1 = options.norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(options.embedding, width)
        self.norm2 = options.norm(width)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Images, emb: Embedding) -> Images:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        hidden = hidden + self.time_emb_proj(emb)[:, :, None, None]
        hidden = self.conv2(self.dropout(functional.silu(self.norm2(hidden))))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Self-attention over pixels: `x + W_o softmax(q k^T / sqrt(d)) v`, with q, k, v of x."""

    def __init__(self, width: int, options: BlockOptions) -> None:
        super().__init__()
        self.heads = width // (options.head_dim or width)
        self.group_norm = options.norm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Images) -> Images:
        attend = self._one_head if self.heads == 1 else self._many_heads
        return x + attend(self.group_norm(x))

    def _one_head(self, x: Images) -> Images:
        """Attention of one head at half the cost, with x itself as keys and values.

        In `q k^T = (x W_q + b_q) W_k^T x^T + ...` and `W_o (P (x W_v))`, the products of two
        weights are computed first.
        """
        q, k, v, out = self._layers()
        key_weight, out_weight = k.weight.mT, out.weight
        # a sum instead of a matrix-vector product, whose rounding depends on the number of threads;
        # the keys' bias is a term equal for all keys, which softmax ignores: it is added times 0 so
        # that it has a gradient
        bias = (k.weight * q.bias[:, None]).sum(0) + 0.0 * k.bias
        query = tokens(pointwise(x, key_weight @ q.weight, bias), 1)
        pixels = tokens(x, 1)
        mixed = images(attention(query, pixels, pixels), like=x)
        out_bias = functional.linear(v.bias, out_weight, out.bias)
        return pointwise(mixed, out_weight @ v.weight, out_bias)

    def _many_heads(self, x: Images) -> Images:
        *qkv, out = self._layers()
        weight = torch.cat([layer.weight for layer in qkv])
        bias = torch.cat([layer.bias for layer in qkv])
        q, k, v = tokens(pointwise(x, weight, bias), 3 * self.heads).chunk(3, dim=1)
        return pointwise(images(attention(q, k, v), like=x), out.weight, out.bias)

    def _layers(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        return self.to_q, self.to_k, self.to_v, cast(nn.Linear, self.to_out[0])


def read_prompt(
    layers: nn.ModuleList | None, index: int, x: Images, context: TextContext | None
) -> Images:
    """The output of layer `index` of attention to prompts; `x` if there are no such layers."""
    return x if layers is None else layers[index](x, context)


class Downsample(nn.Module):
    """Halve height and width by a strided convolution.

    With padding 0, one row and one column of zeros are added at the end, as in DDPM.
    """

    def __init__(self, width: int, options: BlockOptions) -> None:
        super().__init__()
        self.asymmetric = options.padding == 0
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=options.padding)

    def forward(self, x: Images) -> Images:
        return self.conv(functional.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Double height and width: repeat every pixel, then convolve."""

    def __init__(self, width: int, width_out: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width_out or width, 3, padding=1)

    def forward(self, x: Images) -> Images:
        if x.is_cpu:  # faster on CPUs; not measured on GPUs
            return functional.conv_transpose2d(x, self._kernel(), self.conv.bias, 2, 1)
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))

    def _kernel(self) -> Float[Tensor, "i o 4 4"]:
        """Kernel of the equivalent transposed convolution: 4 products per output instead of 9.

        For output `o`, entry k of the convolution's kernel reads pixel `(o + k - 1) // 2`. Each
        pixel affects four outputs. The entries through which it affects the same output are added.
        """
        weight = self.conv.weight
        o, i = weight.shape[:2]
        reach = weight.new_tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
        spread = weight.reshape(o * i, 9) @ torch.kron(reach, reach)
        return spread.view(o, i, 4, 4).transpose(0, 1)


class DownBlock(nn.Module):
    """Encoder layers at one size, then a downsampling unless this is the `last` size.

    Returns the output of every layer, in order. The last one is the input of the next block.
    """

    def __init__(
        self,
        widths_in: list[int],
        width: int,
        options: BlockOptions,
        *,
        attends: bool,
        last: bool,
        reads: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width_in, width, options) for width_in in widths_in)
        self.attentions = options.attentions(width, len(widths_in), attends=attends)
        self.cross_attentions = options.cross_attentions(width, len(widths_in), reads=reads)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width, options)])

    def forward(
        self, x: Images, emb: Embedding, context: TextContext | None = None
    ) -> list[Images]:
        outputs: list[Tensor] = []
        for i, (resnet, attend) in enumerate(zip(self.resnets, self.attentions, strict=True)):
            x = read_prompt(self.cross_attentions, i, attend(resnet(x, emb)), context)
            outputs.append(x)
        return outputs + [downsample(x) for downsample in self.downsamplers]


class MidBlock(nn.Module):
    """The bottleneck: two layers, with attention between them."""

    def __init__(
        self, width: int, options: BlockOptions, *, attends: bool, reads: bool = False
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, width, options) for _ in range(2))
        self.attentions = options.attentions(width, 1, attends=attends)
        self.cross_attentions = options.cross_attentions(width, 1, reads=reads)

    def forward(self, x: Images, emb: Embedding, context: TextContext | None = None) -> Images:
        x = self.attentions[0](self.resnets[0](x, emb))
        return self.resnets[1](read_prompt(self.cross_attentions, 0, x, context), emb)


class UpBlock(nn.Module):
    """Decoder layers at one size, each with a skip connection from the encoder."""

    def __init__(
        self,
        widths_in: list[int],
        width: int,
        options: BlockOptions,
        *,
        attends: bool,
        last: bool,
        reads: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width_in, width, options) for width_in in widths_in)
        self.attentions = options.attentions(width, len(widths_in), attends=attends)
        self.cross_attentions = options.cross_attentions(width, len(widths_in), reads=reads)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(width)])

    def forward(
        self,
        x: Images,
        skips: list[Images],
        emb: Embedding,
        context: TextContext | None = None,
    ) -> Images:
        for i, (resnet, attend) in enumerate(zip(self.resnets, self.attentions, strict=True)):
            x = attend(resnet(torch.cat([x, skips.pop()], dim=1), emb))
            x = read_prompt(self.cross_attentions, i, x, context)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


def image_heights(
    channels: tuple[int, ...], shape: tuple[int, ...], *, halvings: int | None = None
) -> list[int]:
    """Image heights in the encoder of a U-Net, largest first, after 0 to `halvings` halvings.

    By default there is one halving less than there are entries in `channels`.

    Raises: InputError if `shape` is not that of images that can be halved so often.
    """
    if len(shape) != 3:
        raise InputError(
            f"a U-Net needs images (channels, height, width), not shape {shape}: use the mlp"
        )
    count = len(channels) - 1 if halvings is None else halvings
    if count < 0 or any(side % 2**count for side in shape[1:]):
        raise InputError(
            f"{shape[1]}x{shape[2]} pixels cannot be halved {count} times, as the {len(channels)} "
            "entries of channels require: give fewer"
        )
    return [shape[1] >> i for i in range(count + 1)]


def check_attention(setting: str, attends: tuple[int, ...], heights: list[int]) -> None:
    """Raise InputError for a height in `attends` that no image in the encoder has."""
    for height in attends:
        if height not in heights:
            raise InputError(
                f"{setting} is at height {height}, but the images in the encoder have heights "
                f"{heights}: choose from these, or set {setting} = []"
            )


def initialise(net: nn.Module, residual: type[nn.Module]) -> None:
    """Set the weights of a U-Net to DDPM's initial ones, in place.

    The last layers are zero: those of the network, of its blocks of class `residual`, of its
    attention, and of the embedding of the destination if it has one. Labels of augmentation have
    standard normal weights, like classes.
    """
    zero_layers = [net.get_submodule("conv_out")]
    if getattr(net, "time_embedding_s", None) is not None:
        zero_layers.append(net.get_submodule("time_embedding_s.linear_2"))
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, residual):
            zero_layers.append(module.get_submodule("conv2"))
        elif isinstance(module, Attention):
            zero_layers.append(module.to_out[0])
        elif isinstance(module, CrossAttention):
            zero_layers.append(module.to_out)
        elif isinstance(module, TextTransformer):
            module.initialise()
    if getattr(net, "augment_embedding", None) is not None:
        nn.init.normal_(net.get_parameter("augment_embedding.weight"))
    for module in zero_layers:
        for weight in module.parameters():
            nn.init.zeros_(weight)
