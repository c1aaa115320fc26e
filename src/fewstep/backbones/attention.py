"""Attention, normalisation and memory formats, as the networks for images share them."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

Images = Float[Tensor, "b _ _ _"]
HAS_FUSED_BF16 = torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Whether the CPU's fused attention takes bfloat16. It raises RuntimeError on a processor with
AVX-512 of which PyTorch uses less (ATEN_CPU_CAPABILITY=avx2)."""


def forward_mode() -> bool:
    """Whether a forward-mode derivative (`torch.func.jvp`) is being computed.

    torch has no public function for this, and the tensors' tangents are not a reliable sign,
    because an inner `torch.func.grad` hides them.
    """
    return forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]


def channels_last_on_cpu(x: Images) -> Images:
    """The memory format in which a network computes: channels-last on CPUs, unchanged elsewhere.

    On CPUs convolutions are faster in channels-last, and attention needs no transposition. GPUs
    would copy at every normalisation, and so would `Norm` in forward mode.
    """
    if x.is_cpu and not forward_mode():
        return x.contiguous(memory_format=torch.channels_last)
    return x


def group_norm(
    x: Images,
    groups: int,
    weight: Float[Tensor, " c"] | None = None,
    bias: Float[Tensor, " c"] | None = None,
    eps: float = 1e-5,
) -> Images:
    """Group normalisation with forward-mode derivatives for inputs in any memory format."""
    if forward_mode():
        x = x.contiguous()  # for the tangent, torch takes a view that other formats do not allow
    if x.is_cpu and x.dtype == torch.bfloat16:
        # on CPUs the kernels of bfloat16 take three times as long as those of float32
        x32, weight = x.float(), None if weight is None else weight.float()
        bias = None if bias is None else bias.float()
        return functional.group_norm(x32, groups, weight, bias, eps).to(x.dtype)
    return functional.group_norm(x, groups, weight, bias, eps)


def pointwise(x: Images, weight: Float[Tensor, "o c"], bias: Float[Tensor, " o"]) -> Images:
    """Linear layer on the channels, as a convolution: on CPUs up to twice as fast as a matmul."""
    return functional.conv2d(x, weight[:, :, None, None], bias)


def tokens(x: Images, heads: int) -> Float[Tensor, "b heads n d"]:
    """Pixels as a sequence, with channels split into heads. It is a view if x is channels-last."""
    b, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, h * w, heads, c // heads).transpose(1, 2)


def images(x: Float[Tensor, "b heads n d"], *, like: Images) -> Images:
    """Inverse of `tokens`; the height and width are those of `like`."""
    b, _, h, w = like.shape
    return x.transpose(1, 2).reshape(b, h, w, -1).permute(0, 3, 1, 2)


def split_heads(x: Float[Tensor, "b n w"], heads: int) -> Float[Tensor, "b heads n d"]:
    """A sequence with channels split into heads."""
    b, n, width = x.shape
    return x.reshape(b, n, heads, width // heads).transpose(1, 2)


def join_heads(x: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b n w"]:
    """Inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Scaled dot-product attention, to the keys for which `mask` is true; by default to all."""
    keys = None if mask is None else mask[:, None, None, :]
    # on CPUs the backward pass of the fused kernel takes about three times as long in bfloat16
    is_plain = (
        q.is_cpu
        and q.dtype == torch.bfloat16
        and (not HAS_FUSED_BF16 or any(x.requires_grad for x in (q, k, v)))
    )
    if forward_mode() or is_plain:  # the fused kernels have no forward-mode derivative
        weights = q @ k.mT * q.shape[-1] ** -0.5
        if keys is not None:
            weights = weights.masked_fill(~keys, -math.inf)
        return torch.softmax(weights, dim=-1) @ v
    return functional.scaled_dot_product_attention(q, k, v, keys)
