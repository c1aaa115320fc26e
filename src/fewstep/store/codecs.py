"""Codecs: how each tensor of a record is stored.

A codec has the `dtype` and `shape` of one row's values, and `parts`, the tensors that are stored
for them. `encode` and `decode` process many rows at once. They run on the CPU, so that the bytes do
not depend on the device.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float16, Float32, Shaped
from torch import Tensor

from fewstep.errors import InputError
from fewstep.images import from_uint8

# names as in safetensors, used in the schema
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

TINY = 2.0**-24  # smallest positive f16: the scale of a channel of zeros

Shape = tuple[int, ...]
Parts = dict[str, tuple[torch.dtype, Shape]]  # suffix of the name -> dtype and shape


class Codec(ABC):
    """Encodes one tensor of a record."""

    dtype: torch.dtype  # of decoded values
    shape: Shape

    @property
    @abstractmethod
    def parts(self) -> Parts:
        """Dtype and shape of each stored tensor, by the suffix of its name.

        The codes have the suffix ""; others, such as ".scale", have one of their own.
        """

    @abstractmethod
    def encode(self, values: Shaped[Tensor, "rows ..."]) -> dict[str, Tensor]:
        """Encode rows into parts.  Raises: InputError for values that it cannot represent."""

    @abstractmethod
    def decode(self, parts: Mapping[str, Tensor]) -> Shaped[Tensor, "rows ..."]:
        """Decode rows from parts."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Description of the codec as JSON, for the schema; `codec_from` reads it back."""


@dataclass(frozen=True)
class Raw(Codec):
    """Unchanged values: labels, seeds, and other data that must be restored bit for bit."""

    dtype: torch.dtype
    shape: Shape = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_NAMES:
            raise InputError(f"{self.dtype} cannot be stored; choose from {', '.join(DTYPES)}")

    @property
    def parts(self) -> Parts:
        return {"": (self.dtype, self.shape)}

    def encode(self, values: Shaped[Tensor, "rows ..."]) -> dict[str, Tensor]:
        return {"": values}

    def decode(self, parts: Mapping[str, Tensor]) -> Shaped[Tensor, "rows ..."]:
        return parts[""]

    def describe(self) -> dict[str, Any]:
        return {"codec": "raw", "dtype": DTYPE_NAMES[self.dtype], "shape": list(self.shape)}


@dataclass(frozen=True)
class F16(Codec):
    """float32 values in half precision: |x| up to 65504, relative error up to 2^-11."""

    dtype = torch.float32
    shape: Shape

    @property
    def parts(self) -> Parts:
        return {"": (torch.float16, self.shape)}

    def encode(self, values: Float32[Tensor, "rows ..."]) -> dict[str, Tensor]:
        return {"": _check_finite(values.half())}

    def decode(self, parts: Mapping[str, Tensor]) -> Float32[Tensor, "rows ..."]:
        return parts[""].float()

    def describe(self) -> dict[str, Any]:
        return {"codec": "f16", "dtype": "F32", "shape": list(self.shape)}


@dataclass(frozen=True)
class U8(Codec):
    """An image in [-1, 1] as bytes: code = round(127.5 (x + 1)), clipped to 0 … 255."""

    dtype = torch.float32
    shape: Shape

    @property
    def parts(self) -> Parts:
        return {"": (torch.uint8, self.shape)}

    def encode(self, values: Float32[Tensor, "rows ..."]) -> dict[str, Tensor]:
        codes = (_check_finite(values) + 1).mul_(127.5).round_().clamp_(0, 255)
        return {"": codes.to(torch.uint8)}

    def decode(self, parts: Mapping[str, Tensor]) -> Float32[Tensor, "rows ..."]:
        return from_uint8(parts[""])

    def describe(self) -> dict[str, Any]:
        return {"codec": "u8", "dtype": "F32", "shape": list(self.shape)}


@dataclass(frozen=True)
class Int8(Codec):
    """Symmetric per-channel INT8: code = clip(round(x / scale), ±127), x ≈ code · scale.

    scale = percentile(|x|) / 127 of each channel, rounded up to f16: at percentile 100 nothing is
    clipped, and for |x| <= 127 · scale the error is at most scale / 2. There is one scale per entry
    of the first `channels` dimensions of `shape`: 1 for (C, H, W), 2 for chunks (N, C, H, W).
    """

    dtype = torch.float32
    shape: Shape
    channels: int = 1
    percentile: float = 100.0

    def __post_init__(self) -> None:
        if not 50 <= self.percentile <= 100:
            raise InputError(f"int8 percentile is {self.percentile}; choose one from 50 to 100")
        if not 0 <= self.channels <= len(self.shape):
            raise InputError(
                f"int8 channels is {self.channels}, but shape {self.shape} has {len(self.shape)} "
                f"dimensions: choose one from 0 to {len(self.shape)}"
            )

    @property
    def parts(self) -> Parts:
        scales = self.shape[: self.channels]
        return {"": (torch.int8, self.shape), ".scale": (torch.float16, scales)}

    def encode(self, values: Float32[Tensor, "rows ..."]) -> dict[str, Tensor]:
        flat = _check_finite(values).reshape(*values.shape[: 1 + self.channels], -1)
        scale = _scale(flat, self.percentile)
        # multiply by the reciprocal, as torch's quantisation does: its exact codes
        codes = (flat * (1 / scale.float())[..., None]).round_().clamp_(-127, 127)
        return {"": codes.to(torch.int8).reshape(values.shape), ".scale": scale}

    def decode(self, parts: Mapping[str, Tensor]) -> Float32[Tensor, "rows ..."]:
        codes, scale = parts[""].float(), parts[".scale"].float()
        return codes * scale.reshape(scale.shape + (1,) * (codes.dim() - scale.dim()))

    def describe(self) -> dict[str, Any]:
        return {
            "codec": "int8",
            "dtype": "F32",
            "shape": list(self.shape),
            "channels": self.channels,
            "percentile": float(self.percentile),
        }


def codec_from(entry: Mapping[str, Any]) -> Codec:
    """The codec that `describe` described as `entry`.

    Raises: KeyError, TypeError or ValueError if the entry is damaged.
    """
    shape = tuple(entry["shape"])
    match entry["codec"]:
        case "raw":
            codec: Codec = Raw(DTYPES[entry["dtype"]], shape)
        case "f16":
            codec = F16(shape)
        case "u8":
            codec = U8(shape)
        case "int8":
            if type(entry["channels"]) is not int:  # 1.0 would pass as 1
                raise InputError(f"int8 channels is {entry['channels']!r}; it must be an integer")
            codec = Int8(shape, channels=entry["channels"], percentile=entry["percentile"])
        case other:
            raise InputError(f"unknown codec {other!r}; a newer version of fewstep may read it")
    return codec


def _check_finite(values: Tensor) -> Tensor:
    # aminmax takes one pass without a copy, and propagates NaN
    if values.numel() and not torch.stack(values.aminmax()).isfinite().all():
        raise InputError(
            "the values are not finite, or beyond the codec's range; store them with Raw"
        )
    return values


def _scale(
    flat: Float32[Tensor, "rows *channels n"], percentile: float
) -> Float16[Tensor, "rows *channels"]:
    """percentile(|x|) / 127, the percentile interpolated between neighbours, rounded up to f16."""
    position = percentile / 100 * (flat.shape[-1] - 1)
    below = int(position)
    top = flat.abs().topk(flat.shape[-1] - below, dim=-1).values
    bound = torch.lerp(top[..., -1], top[..., -2:][..., 0], position - below)
    exact = (bound / 127).clamp(min=TINY)
    nearest = exact.half()
    # positive halves are ordered as their bits: adding one gives the next number
    higher = (nearest.view(torch.int16) + 1).view(torch.float16)
    return _check_finite(torch.where(nearest.float() < exact, higher, nearest))
