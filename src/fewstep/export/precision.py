"""Weights in fewer bits: float16, or int8 with one scale for each output channel."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.drawing import conditions
from fewstep.generator import Generator
from fewstep.noise import noise_from_seeds
from fewstep.weights_file import to_float16

Dtype = Literal["f32", "f16", "int8"]
INT8_MAX = 127
MIN_INT8 = 2048
"""Weights of this many numbers or fewer, such as those of the first and last convolution, remain in
float32 for int8: they are a small part of the file and a large part of the error."""


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
    """Round a weight. For int8, vectors such as biases and small weights remain in float32."""
    weight = weight.detach()
    if dtype == "f16" and weight.is_floating_point():
        return StoredWeight(weight.half())
    matrix = weight.is_floating_point() and weight.ndim >= 2
    if dtype == "int8" and matrix and weight.numel() > MIN_INT8:
        peak = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True)
        scale = torch.where(peak > 0, peak / INT8_MAX, 1.0).float()
        values = (weight / scale).round().clamp(-INT8_MAX, INT8_MAX)
        return StoredWeight(values.to(torch.int8), scale)
    return StoredWeight(weight)


def round_weights(generator: Generator, dtype: Dtype) -> Generator:
    """A copy of the generator with its weights rounded to `dtype`, and restored to float32.

    For int8, biases are changed so that each channel of a layer has the same mean as before.

    Raises: InputError for a weight outside the range of float16.
    """
    rounded = deepcopy(generator)
    with torch.no_grad():
        for name, weight in [*rounded.named_parameters(), *rounded.named_buffers()]:
            if dtype == "f16":
                to_float16(name, weight)  # checks the range
            weight.copy_(store_weight(weight, dtype).restore())
        if dtype == "int8":
            _correct_biases(generator, rounded)
    return rounded


def _correct_biases(original: Generator, rounded: Generator) -> None:
    """Add to the biases of linear layers and convolutions what rounding takes from their means.

    Means are over 64 samples. Nagel et al. 2019, arXiv:1906.04721, section 4.2.
    """
    shifts: dict[str, list[Tensor]] = {}
    layers = dict(rounded.named_modules())

    def record(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            channels = 1 if isinstance(layer, nn.Conv2d) else -1
            difference = (output - layers[name](*inputs)).movedim(channels, -1)
            shifts.setdefault(name, []).append(difference.flatten(0, -2).mean(0))

        return hook

    handles = [
        layer.register_forward_hook(record(name))
        for name, layer in original.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
    ]
    steps = (original.grid.counts or (4,))[0]
    noise, cond = _example(original)
    try:
        original(noise, steps=steps, cond=cond)
    finally:
        for handle in handles:
            handle.remove()
    for name, values in shifts.items():
        layers[name].get_parameter("bias").add_(torch.stack(values).mean(0))


def _example(generator: Generator, count: int = 64) -> tuple[Tensor, Condition | None]:
    """Noise and classes of 64 samples."""
    cond = conditions(generator.spec, range(count))
    return noise_from_seeds(range(count), generator.spec.shape), cond


@torch.inference_mode()
def rounding_error(original: Generator, rounded: Generator, steps: int) -> dict[str, float]:
    """How much rounding changes 64 images in [0, 1]: the largest and the RMS difference."""
    noise, cond = _example(original)
    first, second = (
        (g(noise, steps=steps, cond=cond).clamp(-1, 1) + 1) / 2 for g in (original, rounded)
    )
    difference = (first - second).abs()
    return {"largest": difference.max().item(), "rms": difference.square().mean().sqrt().item()}
