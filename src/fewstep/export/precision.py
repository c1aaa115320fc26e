"""Weights in fewer bits: float16, or int8 with one scale for each output channel."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.generator import Generator
from fewstep.noise import noise_from_seeds

Dtype = Literal["f32", "f16", "int8"]
INT8_MAX = 127


@dataclass(frozen=True)
class StoredWeight:
    """A weight as it is stored: `values`, times `scale` (n, 1, ...) for each row if it is int8."""

    values: Tensor
    scale: Tensor | None = None

    def restore(self) -> Tensor:
        """The weight in float32."""
        values = self.values.float()
        return values if self.scale is None else values * self.scale


def store_weight(weight: Tensor, dtype: Dtype) -> StoredWeight:
    """Round a weight. In int8, vectors and numbers such as biases remain in float32."""
    weight = weight.detach()
    if dtype == "f16" and weight.is_floating_point():
        return StoredWeight(weight.half())
    if dtype == "int8" and weight.is_floating_point() and weight.ndim >= 2:
        peak = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
        scale = torch.where(peak > 0, peak / INT8_MAX, 1.0).float()
        values = (weight / scale).round().clamp(-INT8_MAX, INT8_MAX)
        return StoredWeight(values.to(torch.int8), scale)
    return StoredWeight(weight)


def round_weights(generator: Generator, dtype: Dtype) -> Generator:
    """A copy of the generator with its weights rounded to `dtype`, and restored to float32."""
    rounded = deepcopy(generator)
    with torch.no_grad():
        for weight in [*rounded.parameters(), *rounded.buffers()]:
            weight.copy_(store_weight(weight, dtype).restore())
    return rounded


@torch.inference_mode()
def rounding_error(original: Generator, rounded: Generator, steps: int) -> dict[str, float]:
    """How much rounding changes 64 images in [0, 1]: the largest and the RMS difference."""
    count, classes = 64, original.spec.classes
    noise = noise_from_seeds(range(count), original.spec.shape)
    cond = Condition(torch.arange(count) % classes) if classes else None
    first, second = (
        (g(noise, steps=steps, cond=cond).clamp(-1, 1) + 1) / 2 for g in (original, rounded)
    )
    difference = (first - second).abs()
    return {"largest": difference.max().item(), "rms": difference.square().mean().sqrt().item()}
