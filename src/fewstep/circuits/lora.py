"""Low-rank adaptation of a pretrained U-Net.  Hu et al. 2021, arXiv:2106.09685."""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fewstep.backbones.blocks import Attention
from fewstep.backbones.unet import UNet

ORIGINAL = "parametrizations.weight.original"
"""Suffix of the pretrained weight in the state dict of a layer that has an adaptation."""


class LowRank(nn.Module):
    """Adds `alpha / rank · up @ down` to a weight; `up` starts at zero."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.up @ self.down


def add_lora(net: UNet, rank: int, alpha: float, trainable: tuple[str, ...]) -> None:
    """Add low-rank adaptations to the attention of `net` and freeze its other weights, in place.

    Norms, the time embedding and modules whose names start with one of `trainable` stay trainable.
    """
    for module in [m for m in net.modules() if isinstance(m, Attention)]:
        for layer in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
            weight = layer.get_parameter("weight")
            parametrize.register_parametrization(layer, "weight", LowRank(weight, rank, alpha))
    prefixes = (*trainable, "time_embedding")
    for path, module in [*net.named_modules()]:
        if path.startswith(prefixes) or isinstance(module, nn.GroupNorm | LowRank):
            continue
        freeze(module, recurse=False)


def freeze(module: nn.Module, *, recurse: bool = True) -> None:
    """Turn parameters into buffers, in place: they are saved and moved, but not optimised."""
    for inner in module.modules() if recurse else [module]:
        for name, parameter in [*inner.named_parameters(recurse=False)]:
            delattr(inner, name)
            inner.register_buffer(name, parameter.detach().clone())
