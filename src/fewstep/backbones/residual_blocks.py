"""Residual blocks of DDPM++, NCSN++ and ADM, which differ in a few settings.

Song et al. 2021, arXiv:2011.13456; Dhariwal and Nichol 2021, arXiv:2105.05233; Karras et al. 2022,
arXiv:2206.00364, appendix F.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.attention import Images
from fewstep.backbones.blocks import Attention, BlockOptions, Embedding, Norm

Direction = Literal["up", "down"]


@dataclass(frozen=True)
class ResidualOptions(BlockOptions):
    """Settings that all blocks of one network share."""

    min_group: int
    """Least channels per group of a normalisation."""
    adaptive: bool
    """Whether the embedding sets a scale too, or a shift alone."""
    residual_scale: float
    """Factor of the sum of a layer's input and output."""
    taps: tuple[int, ...]
    """Filter with which images are doubled or halved in size."""
    shortcut: bool
    """Whether the shortcut has a convolution also where only the size changes."""

    def norm(self, width: int) -> Norm:
        """A group normalisation of `width` channels."""
        return Norm(min(self.groups, width // self.min_group), width, self.eps)


class ResidualBlock(nn.Module):
    """Two convolutions after normalisations, a change of size before the first, and attention."""

    def __init__(
        self,
        width_in: int,
        width: int,
        options: ResidualOptions,
        *,
        attends: bool = False,
        resize: Direction | None = None,
    ) -> None:
        super().__init__()
        self.resize: Direction | None = resize
        self.taps = options.taps
        self.adaptive, self.residual_scale = options.adaptive, options.residual_scale
        self.norm1 = options.norm(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.emb_proj = nn.Linear(options.embedding, width * (2 if options.adaptive else 1))
        self.norm2 = options.norm(width)
        self.dropout = nn.Dropout(options.dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        projects = width_in != width or (resize is not None and options.shortcut)
        self.shortcut = nn.Conv2d(width_in, width, 1) if projects else None
        self.attention = Attention(width, options) if attends else None

    def forward(self, x: Images, emb: Embedding) -> Images:
        hidden = functional.silu(self.norm1(x))
        if self.resize is not None:
            hidden, x = (resample(each, self.resize, self.taps) for each in (hidden, x))
        hidden, shift = self.conv1(hidden), self.emb_proj(emb)[:, :, None, None]
        if self.adaptive:
            scale, shift = shift.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (scale + 1) + shift
        else:
            hidden = self.norm2(hidden + shift)
        hidden = self.conv2(self.dropout(functional.silu(hidden)))
        x = (hidden + (x if self.shortcut is None else self.shortcut(x))) * self.residual_scale
        return x if self.attention is None else self.attention(x) * self.residual_scale


class ImageSkip(nn.Module):
    """Convolve and halve the last size's activations, for NCSN++; the filter comes second."""

    def __init__(self, width_in: int, width: int, taps: tuple[int, ...]) -> None:
        super().__init__()
        self.taps = taps
        self.conv = nn.Conv2d(width_in, width, 3, padding=1 + (len(taps) - 1) // 2)

    def forward(self, x: Images) -> Images:
        # a filter keeps a constant, so the bias may come before it
        return filter_down(self.conv(x), self.taps, padding=0)


def resample(x: Images, direction: Direction, taps: tuple[int, ...]) -> Images:
    """Double or halve height and width with a separable filter; (1, 1) repeats or averages."""
    if direction == "down":
        return filter_down(x, taps, padding=(len(taps) - 1) // 2)
    if taps == (1, 1):
        return functional.interpolate(x, scale_factor=2.0, mode="nearest")
    kernel, padding = _kernel(x, taps), (len(taps) - 1) // 2
    return functional.conv_transpose2d(x, 4 * kernel, None, 2, padding, 0, x.shape[1])


def filter_down(x: Images, taps: tuple[int, ...], *, padding: int) -> Images:
    """Halve height and width with a separable filter."""
    if taps == (1, 1):
        return functional.avg_pool2d(x, 2)
    return functional.conv2d(x, _kernel(x, taps), None, 2, padding, 1, x.shape[1])


def _kernel(x: Images, taps: tuple[int, ...]) -> Tensor:
    """The filter for each channel of `x`, (c, 1, k, k), with sum 1."""
    row = x.new_tensor(taps, dtype=torch.float32)
    kernel = torch.outer(row, row) / row.sum().square()
    return kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)
