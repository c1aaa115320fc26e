"""Networks without memory: the names and shapes of the weights that settings ask for.

Settings in somebody else's file may ask for a network of any size. Its outline is compared with the
tensors in the file before it is built.
"""

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from fewstep.backbones.base import Backbone, BackboneConfig, build_backbone
from fewstep.condition import TextInput
from fewstep.errors import InputError

RANDOM = frozenset(
    {"normal_", "uniform_", "trunc_normal_", "bernoulli_", "orthogonal_", "sparse_"}
    | {"kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"}
)
"""Functions that draw initial values."""
LARGEST = 1 << 16
"""Largest integer in settings, unless a file has more tensors than that."""


def outline(
    config: BackboneConfig,
    *,
    shape: tuple[int, ...],
    classes: int,
    text: TextInput | None,
    tensors: int,
) -> Backbone:
    """The network of these settings on the device `meta`, for a file of so many `tensors`.

    Raises: InputError as `config.build`, or as `outline_of`.
    """
    return outline_of(
        lambda: build_backbone(config, shape=shape, classes=classes, text=text),
        config,
        tensors=tensors,
    )


NetworkT = TypeVar("NetworkT", bound=nn.Module)


def outline_of(build: Callable[[], NetworkT], settings: Any, *, tensors: int) -> NetworkT:
    """The network that `build` builds of `settings`, on the device `meta`.

    Raises: InputError as `build`, or, before much is built, for settings that ask for many more
    weights than a file of so many `tensors` has.
    """
    limit = max(LARGEST, tensors)
    for number in _integers(settings):
        if abs(number) > limit:
            raise InputError(
                f"a setting of the network is {number}, and at most {limit} is allowed here"
            )
    with without_memory(), _limited(2 * tensors + 64, tensors):
        return build()


def find_misfit(network: nn.Module, shapes: Mapping[str, torch.Size], prefix: str = "") -> str:
    """One line on the first weight that differs from `shapes`, of tensors by name; "" if none does.

    `prefix` is the start of the names in `shapes`.
    """
    expected = {prefix + name: value.shape for name, value in network.state_dict().items()}
    for name in sorted(expected.keys() | shapes.keys()):
        needed, actual = expected.get(name), shapes.get(name)
        if needed != actual:
            return f"{name!r} is {_text(actual)} in the file, but {_text(needed)} in a network"
    return ""


def _text(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))


@contextmanager
def without_memory() -> Generator[None]:
    """Build networks on the device `meta` in the block: their weights have shapes and no values."""
    with torch.device("meta"), _NoInitialValues():
        yield


class _NoInitialValues(TorchFunctionMode):
    """Leaves out random initial values, which have no meaning on the device `meta`.

    There, PyTorch imports its compiler to draw them, which takes seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func.__name__ in RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def _limited(most: int, tensors: int) -> Generator[None]:
    """Raise InputError when this thread has built `most` weights in the block."""
    thread, count = threading.get_ident(), 0

    def count_weight(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal count
        if threading.get_ident() != thread:
            return
        count += 1
        if count > most:
            raise InputError(
                f"the network has more than {most} weights by its settings, but the file has only "
                f"{tensors} tensors"
            )

    handle = register_module_parameter_registration_hook(count_weight)
    try:
        yield
    finally:
        handle.remove()


def _integers(value: Any) -> Generator[int]:
    if isinstance(value, int):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _integers(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for item in cast(list[Any], value):
            yield from _integers(item)
