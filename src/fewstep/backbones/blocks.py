"""Blocks of the U-Net, with the same parameter names as diffusers' `UNet2DModel`.

They compute the same as diffusers' with fewer operations: where no nonlinearity separates two
weights, their product is computed first. Attention reads its layers' weights and biases and never
calls the layers, so adapt them (LoRA) with `torch.nn.utils.parametrize`.
"""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

Images = Float[Tensor, "b _ _ _"]
Embedding = Float[Tensor, "b e"]


def forward_mode() -> bool:
    """Whether a forward-mode derivative (`torch.func.jvp`) is being computed.

    torch has no public function for this. The tangents of tensors do not show it, because an inner
    `torch.func.grad` hides them.
    """
    return forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


@dataclass(frozen=True)
class BlockOptions:
    """Settings that all blocks of one network share."""

    embedding: int
    groups: int
    eps: float
    dropout: float
    head_dim: int | None
    padding: int

    def norm(self, width: int) -> "Norm":
        return Norm(self.groups, width, self.eps)

    def attentions(self, width: int, count: int, *, attends: bool) -> nn.ModuleList:
        """One module per layer of a block: attention, or the identity."""
        return nn.ModuleList(
            Attention(width, self) if attends else nn.Identity() for _ in range(count)
        )


def contiguous_for_jvp(x: Images) -> Images:
    """Make the input of a group normalisation contiguous in forward mode.

    torch's formula for the tangent takes a view, which other memory formats do not allow.
    """
    return x.contiguous() if forward_mode() else x


class Norm(nn.GroupNorm):
    """Group normalisation that has forward-mode derivatives in every memory format."""

    def forward(self, input: Images) -> Images:
        return super().forward(contiguous_for_jvp(input))


class Resnet(nn.Module):
    """Residual block of two normalised convolutions; the embedding is added between them."""

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
        """Attention at half the cost: `q k^T = (x W_q + b_q) W_k^T x^T + ...` and `W_o (P (x W_v))`
        need only products of weights, with x itself as keys and values."""
        q, k, v, out = self._layers()
        inward, outward = k.weight.mT, out.weight
        # a sum of rows, because a matrix-vector product rounds differently at other thread counts;
        # softmax ignores terms that are equal for all keys, so the bias of the keys has no effect,
        # but it must have a gradient (of zero)
        bias = (k.weight * q.bias[:, None]).sum(0) + 0.0 * k.bias
        query = tokens(pointwise(x, inward @ q.weight, bias), 1)
        pixels = tokens(x, 1)
        mixed = images(attention(query, pixels, pixels), like=x)
        return pointwise(mixed, outward @ v.weight, functional.linear(v.bias, outward, out.bias))

    def _many_heads(self, x: Images) -> Images:
        *three, out = self._layers()
        weight = torch.cat([layer.weight for layer in three])
        bias = torch.cat([layer.bias for layer in three])
        q, k, v = tokens(pointwise(x, weight, bias), 3 * self.heads).chunk(3, dim=1)
        return pointwise(images(attention(q, k, v), like=x), out.weight, out.bias)

    def _layers(self) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
        return self.to_q, self.to_k, self.to_v, cast(nn.Linear, self.to_out[0])


def pointwise(x: Images, weight: Float[Tensor, "o c"], bias: Float[Tensor, " o"]) -> Images:
    """Linear layer on the channels; a convolution is up to twice as fast on CPUs as a matmul."""
    return functional.conv2d(x, weight[:, :, None, None], bias)


def tokens(x: Images, heads: int) -> Float[Tensor, "b heads n d"]:
    """Pixels as a sequence, with the channels split into heads; a view of channels-last images."""
    b, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, h * w, heads, c // heads).transpose(1, 2)


def images(x: Float[Tensor, "b heads n d"], *, like: Images) -> Images:
    """Inverse of `tokens`; the height and width are those of `like`."""
    b, _, h, w = like.shape
    return x.transpose(1, 2).reshape(b, h, w, -1).permute(0, 3, 1, 2)


def attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads n d"],
    v: Float[Tensor, "b heads n d"],
) -> Float[Tensor, "b heads n d"]:
    """Scaled dot-product attention."""
    if forward_mode():  # the fused kernels have no forward-mode derivative
        return torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v
    return functional.scaled_dot_product_attention(q, k, v)


class Downsample(nn.Module):
    """Halve the size by a strided convolution; padding 0 adds one row and column at the end."""

    def __init__(self, width: int, options: BlockOptions) -> None:
        super().__init__()
        self.asymmetric = options.padding == 0
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=options.padding)

    def forward(self, x: Images) -> Images:
        return self.conv(functional.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Double the size: repeat every pixel, then convolve."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Images) -> Images:
        if x.is_cpu:  # measured there only
            return functional.conv_transpose2d(x, self._kernel(), self.conv.bias, 2, 1)
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))

    def _kernel(self) -> Float[Tensor, "i o 4 4"]:
        """Kernel of the equivalent transposed convolution: 4 products per output instead of 9.

        Tap k of the convolution reads pixel `(o + k - 1) // 2` for output `o`. Each pixel affects
        four outputs, and the taps through which it affects the same output are added.
        """
        weight = self.conv.weight
        o, i = weight.shape[:2]
        reach = weight.new_tensor([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]])
        spread = weight.reshape(o * i, 9) @ torch.kron(reach, reach)
        return spread.view(o, i, 4, 4).transpose(0, 1)


class DownBlock(nn.Module):
    """Encoder layers at one size, then a downsampling unless this is the `last` size.

    Returns the output of every layer, in order; the next block takes the last.
    """

    def __init__(
        self, widths_in: list[int], width: int, options: BlockOptions, *, attends: bool, last: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(each, width, options) for each in widths_in)
        self.attentions = options.attentions(width, len(widths_in), attends=attends)
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width, options)])

    def forward(self, x: Images, emb: Embedding) -> list[Images]:
        outputs: list[Tensor] = []
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            x = attend(resnet(x, emb))
            outputs.append(x)
        return outputs + [downsample(x) for downsample in self.downsamplers]


class MidBlock(nn.Module):
    """The bottleneck: two layers, with attention between them."""

    def __init__(self, width: int, options: BlockOptions, *, attends: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, width, options) for _ in range(2))
        self.attentions = options.attentions(width, 1, attends=attends)

    def forward(self, x: Images, emb: Embedding) -> Images:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, emb)), emb)


class UpBlock(nn.Module):
    """Decoder layers at one size, each with a skip connection from the encoder."""

    def __init__(
        self, widths_in: list[int], width: int, options: BlockOptions, *, attends: bool, last: bool
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(each, width, options) for each in widths_in)
        self.attentions = options.attentions(width, len(widths_in), attends=attends)
        self.upsamplers = nn.ModuleList([] if last else [Upsample(width)])

    def forward(self, x: Images, skips: list[Images], emb: Embedding) -> Images:
        for resnet, attend in zip(self.resnets, self.attentions, strict=True):
            x = attend(resnet(torch.cat([x, skips.pop()], dim=1), emb))
        for upsample in self.upsamplers:
            x = upsample(x)
        return x
