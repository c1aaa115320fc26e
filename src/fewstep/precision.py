"""Number formats of the computation: float32, TensorFloat-32 and bfloat16.

PyTorch lets convolutions on a GPU round their float32 inputs to TF32 by default, by up to 2^-11.
Networks of this package do so only with the precision "tf32", whatever the settings of the process,
which are the same before and after each call.
"""

import platform
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.ranges import Precision

_backends: Any = torch.backends
_OPERATIONS = (
    _backends.cudnn.conv,
    _backends.cudnn.rnn,
    _backends.cuda.matmul,
    _backends.mkldnn.conv,
    _backends.mkldnn.matmul,
)


@dataclass(frozen=True)
class _Switches:
    """PyTorch's newer switches, one per operation, and its older two."""

    operations: tuple[str, ...]
    matmul: str | None
    cudnn: bool | None


class _Switcher:
    """Sets the switches for all contexts that are open, in whichever threads they are."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.contexts: dict[object, _Switches] = {}
        """The switches of each open context; those of the latest are set."""
        self.original: _Switches | None = None
        """The switches outside all contexts, while any is open."""

    def enter(self, context: object, switches: _Switches) -> None:
        with self.lock:
            if not self.contexts:
                self.original = _read()
            self.contexts[context] = switches
            _set(switches)

    def leave(self, context: object) -> None:
        with self.lock:
            del self.contexts[context]
            switches = next(reversed(self.contexts.values()), self.original)
            assert switches
            _set(switches)


_SWITCHER = _Switcher()


@contextmanager
def float32_products(precision: Precision = "f32") -> Generator[None]:
    """A context in which float32 products and convolutions round to TF32 only with "tf32".

    The backward pass must run in it too. It sets process-wide switches, which the last context to
    end restores, so another thread must not compute in another precision meanwhile.
    """
    if torch.compiler.is_compiling():
        yield
        return
    context, is_tf32 = object(), precision == "tf32"
    operations = ("tf32" if is_tf32 else "ieee",) * len(_OPERATIONS)
    _SWITCHER.enter(context, _Switches(operations, "high" if is_tf32 else "highest", is_tf32))
    try:
        yield
    finally:
        _SWITCHER.leave(context)


def _read() -> _Switches:
    operations = tuple(operation.fp32_precision for operation in _OPERATIONS)
    matmul: str | None = None
    with suppress(RuntimeError):  # the process mixes PyTorch's two sets of switches
        matmul = torch.get_float32_matmul_precision()
    cudnn: bool | None = None
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn.allow_tf32
    return _Switches(operations, matmul, cudnn)


def _set(switches: _Switches) -> None:
    if tuple(operation.fp32_precision for operation in _OPERATIONS) == switches.operations:
        return
    # torch.compile still reads the older two switches, and raises if they contradict the newer
    if switches.matmul is not None:
        torch.set_float32_matmul_precision(switches.matmul)
    if switches.cudnn is not None:
        torch.backends.cudnn.allow_tf32 = switches.cudnn
    for operation, setting in zip(_OPERATIONS, switches.operations, strict=True):
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


def slow_precision(precision: Precision, device_type: str, setting: str, work: str) -> str | None:
    """A warning if `work` is slow in this precision on a device of this type, naming `setting`."""
    if precision != "bf16" or device_type != "cpu" or not bf16_is_slow():
        return None
    return (
        f"{setting} is bf16, for which this CPU has no instructions: {work} is many times slower "
        'than with "f32"'
    )


def bf16_is_slow() -> bool:
    """Whether the CPU lacks instructions for bfloat16, which PyTorch then emulates."""
    instructions = (
        torch.cpu._is_amx_tile_supported,  # pyright: ignore[reportPrivateUsage]
        torch.cpu._is_avx512_bf16_supported,  # pyright: ignore[reportPrivateUsage]
    )
    return platform.machine() in ("x86_64", "AMD64") and not any(has() for has in instructions)
