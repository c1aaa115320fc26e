"""Generators with weights in fewer bits, and what that changes."""

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.drawing import conditions
from fewstep.generator import Generator
from fewstep.noise import noise_from_seeds
from fewstep.stored_weights import Dtype, store_weight, to_float16


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
