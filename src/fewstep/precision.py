"""Number formats of the computation: float32, TensorFloat-32 and bfloat16.

PyTorch lets convolutions on a GPU round their float32 inputs to TF32 by default, by up to 2^-11.
Networks of this package do so only with the precision "tf32", whatever the settings of the process,
which are the same before and after each call.
"""

import platform
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import torch

Precision = Literal["f32", "tf32", "bf16"]
"""f32: float32. tf32: float32 whose matrix products and convolutions round their inputs to TF32, on
GPUs that have it. bf16: layers that allow it compute in bfloat16, all else in float32."""


_backends: Any = torch.backends
_OPERATIONS = (
    _backends.cudnn.conv,
    _backends.cudnn.rnn,
    _backends.cuda.matmul,
    _backends.mkldnn.conv,
    _backends.mkldnn.matmul,
)


@contextmanager
def float32_products(precision: Precision = "f32") -> Generator[None]:
    """A context in which float32 products and convolutions round to TF32 only with "tf32".

    The backward pass must run in it too. It sets process-wide switches and restores them at its
    end, so another thread must not compute in another precision meanwhile.
    """
    settings = ["tf32" if precision == "tf32" else "ieee"] * len(_OPERATIONS)
    previous = [operation.fp32_precision for operation in _OPERATIONS]
    if previous == settings or torch.compiler.is_compiling():
        yield
        return
    matmul: str | None = None
    with suppress(RuntimeError):  # the process mixes PyTorch's two sets of switches
        matmul = torch.get_float32_matmul_precision()
    cudnn: bool | None = None
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    _set("high" if precision == "tf32" else "highest", precision == "tf32", settings)
    try:
        yield
    finally:
        _set(matmul, cudnn, previous)


def _set(matmul: str | None, cudnn: bool | None, settings: list[str]) -> None:
    # torch.compile still reads the older two switches, and raises if they contradict the newer
    if matmul is not None:
        torch.set_float32_matmul_precision(matmul)
    if cudnn is not None:
        torch.backends.cudnn.allow_tf32 = cudnn
    for operation, setting in zip(_OPERATIONS, settings, strict=True):
        operation.fp32_precision = setting


@contextmanager
def compute_in(precision: Precision, device_type: str) -> Generator[None]:
    """A context in which a network computes in `precision` on a device of this type."""
    with float32_products(precision):
        if precision != "bf16":
            yield
            return
        with torch.autocast(device_type, torch.bfloat16):
            yield


def bf16_is_slow() -> bool:
    """Whether the CPU lacks instructions for bfloat16, which PyTorch then emulates."""
    instructions = (
        torch.cpu._is_amx_tile_supported,  # pyright: ignore[reportPrivateUsage]
        torch.cpu._is_avx512_bf16_supported,  # pyright: ignore[reportPrivateUsage]
    )
    return platform.machine() in ("x86_64", "AMD64") and not any(has() for has in instructions)
