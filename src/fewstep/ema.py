"""Exponential moving averages of weights, with half-lives in images."""

import torch
from torch import Tensor, nn


def halflife_decay(images: float, halflife: float) -> float:
    """Weight of the old average after `images` further images: `0.5 ** (images / halflife)`."""
    return 0.5 ** (images / halflife) if halflife > 0 else 0.0


def follow(target: nn.Module, source: nn.Module, *, decay: float) -> None:
    """Update the moving average `target` with the parameters of `source`, in place.

    The buffers of `source` are copied.
    """
    lerp([*target.parameters()], [*source.parameters()], decay=decay)
    for average, buffer in zip(target.buffers(), source.buffers(), strict=True):
        average.copy_(buffer)


@torch.no_grad()
def lerp(average: list[Tensor], weights: list[Tensor], *, decay: float) -> None:
    """average ← decay·average + (1 − decay)·weights, in place."""
    torch._foreach_lerp_(average, weights, 1 - decay)  # pyright: ignore[reportPrivateUsage]
