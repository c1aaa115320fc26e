"""The parts of the U-Net, with the parameter names of diffusers' `UNet2DModel`."""

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.autograd import forward_ad

Image = Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class Parts:
    """What all blocks of one network share."""

    embedding: int
    groups: int
    eps: float
    dropout: float
    head_dim: int | None
    padding: int

    def norm(self, channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(self.groups, channels, self.eps)


def forward_mode() -> bool:
    return forward_ad._current_level >= 0


def normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return norm(x.contiguous() if forward_mode() else x)


class Resnet(nn.Module):
    inplace = False
    def __init__(self, width_in: int, width: int, parts: Parts) -> None:
        super().__init__()
        self.norm1 = parts.norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(parts.embedding, width)
        self.norm2 = parts.norm(width)
        self.dropout = nn.Dropout(parts.dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(normed(self.norm1, x)))
        if Resnet.inplace: hidden += self.time_emb_proj(emb)[:, :, None, None]
        else: hidden = hidden + self.time_emb_proj(emb)[:, :, None, None]
        hidden = self.conv2(self.dropout(functional.silu(normed(self.norm2, hidden))))
        if Resnet.inplace: return hidden.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))
        return hidden + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    def __init__(self, width: int, parts: Parts) -> None:
        super().__init__()
        self.heads = width // (parts.head_dim or width)
        self.group_norm = parts.norm(width)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        three = (self.to_q, self.to_k, self.to_v)
        weight = torch.cat([linear.weight for linear in three])
        bias = torch.cat([linear.bias for linear in three])
        qkv = functional.conv2d(normed(self.group_norm, x), weight[:, :, None, None], bias)
        qkv = qkv.permute(0, 2, 3, 1).reshape(b, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if forward_mode():
            mixed = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1) @ v
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v)
        mixed = mixed.transpose(1, 2).reshape(b, h, w, c).permute(0, 3, 1, 2)
        out = cast(nn.Linear, self.to_out[0])
        return x + functional.conv2d(mixed, out.weight[:, :, None, None], out.bias)


class Downsample(nn.Module):
    def __init__(self, width: int, parts: Parts) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=parts.padding)

    def forward(self, x: Tensor) -> Tensor:
        if self.conv.padding == (0, 0):
            x = functional.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class Upsample(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    mode = 0
    def forward(self, x: Tensor) -> Tensor:
        if self.mode == 0:
            return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        spread = x.new_tensor([[0,0,1,1],[0,1,1,0],[1,1,0,0]])
        w = self.conv.weight
        o, i = w.shape[:2]
        kernel = torch.kron(spread, spread)
        kernel = (w.reshape(o * i, 9) @ kernel).view(o, i, 4, 4).transpose(0, 1)
        return functional.conv_transpose2d(x, kernel, self.conv.bias, stride=2, padding=1)


class DownBlock(nn.Module):
    def __init__(self, width_in, width, layers, attends, last, parts: Parts) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            Resnet(width_in if i == 0 else width, width, parts) for i in range(layers)
        )
        self.attentions = nn.ModuleList(Attention(width, parts) for _ in range(layers * attends))
        self.downsamplers = nn.ModuleList([] if last else [Downsample(width, parts)])

    def forward(self, x, emb):
        skips = []
        for i, r in enumerate(self.resnets):
            x = r(x, emb)
            if self.attentions:
                x = self.attentions[i](x)
            skips.append(x)
        for d in self.downsamplers:
            x = d(x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    def __init__(self, width, attends, parts):
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(width, width, parts) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(width, parts)] if attends else [])

    def forward(self, x, emb):
        x = self.resnets[0](x, emb)
        for a in self.attentions:
            x = a(x)
        return self.resnets[1](x, emb)


class UpBlock(nn.Module):
    def __init__(self, widths_in, width, attends, last, parts: Parts) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Resnet(w, width, parts) for w in widths_in)
        self.attentions = nn.ModuleList(
            Attention(width, parts) for _ in range(len(widths_in) * attends)
        )
        self.upsamplers = nn.ModuleList([] if last else [Upsample(width)])

    def forward(self, x, skips, emb):
        for i, r in enumerate(self.resnets):
            x = r(torch.cat([x, skips.pop()], 1), emb)
            if self.attentions:
                x = self.attentions[i](x)
        for u in self.upsamplers:
            x = u(x)
        return x
