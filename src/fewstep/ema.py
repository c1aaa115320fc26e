"""Moving averages of weights: exponential ones, with half-lives in images, and power profiles.

A power profile weighs the weights of time tau in proportion to tau**exponent, so that it is as
wide, relative to the training so far, at every time. Karras et al. 2024, arXiv:2312.02696.
"""

from collections.abc import Mapping, Sequence

import numpy as np
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


def power_exponent(length: float) -> float:
    """The exponent of the power profile whose standard deviation is `length` times the training.

    It solves length² = (e + 1)/((e + 2)²·(e + 3)) (arXiv:2312.02696, algorithm 2), and falls from
    infinity to 0 as `length` grows from 0 to 1/√12 = 0.289.
    """
    square = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - square, 12.0 - square]).real.max())


class PowerAverages:
    """Averages of the parameters of a network with power profiles of the given lengths."""

    def __init__(self, network: nn.Module, lengths: Sequence[float]) -> None:
        self.exponents = [power_exponent(length) for length in lengths]
        self.values = [[p.detach().clone() for p in network.parameters()] for _ in lengths]

    def update(self, network: nn.Module, step: int) -> None:
        """Add the parameters after training step `step`, the first of which is 1.

        They count as the weights of the whole time from step − 1 to `step`, of which the profile is
        integrated exactly. The initial parameters do not count.
        """
        weights = [p.detach() for p in network.parameters()]
        for exponent, average in zip(self.exponents, self.values, strict=True):
            lerp(average, weights, decay=(1 - 1 / step) ** (exponent + 1))

    def state(self) -> dict[str, Tensor]:
        """The averages, for a saved training."""
        return {
            f"power.{index}.{i}": value
            for index, average in enumerate(self.values)
            for i, value in enumerate(average)
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the averages to the result of an earlier call of `state`."""
        for name, value in self.state().items():
            value.copy_(tensors[name])
