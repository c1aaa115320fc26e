"""Weights in fewer bits: float16, or int8 with one scale for each output channel."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import InputError

Dtype = Literal["f32", "f16", "int8"]
INT8_MAX = 127
SCALE = ":scale"
"""End of the name of a scale."""
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


def store_weights(tensors: Mapping[str, Tensor], dtype: Dtype) -> dict[str, Tensor]:
    """Tensors by name, rounded to `dtype`. The scales of int8 weights are tensors of their own.

    Raises: InputError for a weight outside the range of float16.
    """
    result: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        if dtype == "f16":
            to_float16(name, weight)  # checks the range
        stored = store_weight(weight, dtype)
        result[name] = stored.values
        if stored.scale is not None:
            result[name + SCALE] = stored.scale
    return result


def restore_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `store_weights`, up to rounding; int8 weights are restored to float32.

    Raises: InputError for a scale that fits no weight.
    """
    weights = {name: value for name, value in tensors.items() if not name.endswith(SCALE)}
    for name in tensors.keys() - weights.keys():
        weight, scale = weights.get(name.removesuffix(SCALE)), tensors[name]
        rows = None if weight is None else (len(weight), *[1] * (weight.ndim - 1))
        if weight is None or weight.dtype != torch.int8 or tuple(scale.shape) != rows:
            raise InputError(f"{name!r} is not the scale of an int8 weight")
        weights[name.removesuffix(SCALE)] = StoredWeight(weight, scale).restore()
    return weights


def to_float16(name: str, weight: Tensor) -> Tensor:
    """The weight in float16; integers are returned unchanged.

    Raises: InputError for numbers outside the range of float16.
    """
    half = weight.half() if weight.is_floating_point() else weight
    if (half.isinf() & weight.isfinite()).any():
        peak = weight.abs().max().item()
        raise InputError(
            f"{name} has a weight of {peak:g}, outside the range of float16, ±65504: choose another"
            " --dtype"
        )
    return half
