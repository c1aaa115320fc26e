"""Numbers that are known before a program runs: alpha, sigma and all that follows from them.

Samplers compute with them as with tensors. A traced program should contain their values instead: a
`Constant` computes at once with other constants, and is a Python number for everything else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch
from torch.utils._pytree import tree_leaves, tree_map

from fewstep.coefficients import Coefficients
from fewstep.denoiser import Denoiser

not_traced = _python_dispatch._disable_current_modes  # pyright: ignore[reportPrivateUsage]
"""A context whose operations run at once and do not become part of a traced program."""

_VALUES = ("t", "alpha", "sigma", "scale", "level", "log_ratio", "diffusion")
_PAIRS = ("target_coefficients", "x0", "eps", "rates", "velocity")


class Constant(Tensor):
    """A tensor without dimensions whose value becomes part of a traced program."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not all(issubclass(kind, Constant) or kind is Tensor for kind in types):
            return NotImplemented  # the other class knows what to do
        keywords: dict[str, Any] = dict(kwargs or {})
        if all(map(_is_concrete, tree_leaves([args, keywords]))):
            with not_traced(), torch._C.DisableTorchFunctionSubclass():  # pyright: ignore[reportPrivateUsage]
                result = func(*tree_map(_as_tensor, args), **tree_map(_as_tensor, keywords))
                return tree_map(_as_constant, result)
        if func is Tensor.expand:
            # a number for each of a number of rows that is not known yet
            value, *size = args
            size = size[0] if isinstance(size[0], tuple | list | torch.Size) else size
            return torch.full(tuple(size), value.item(), dtype=value.dtype)
        return func(*tree_map(_as_number, args), **tree_map(_as_number, keywords))


def _is_concrete(value: Any) -> bool:
    return isinstance(value, Constant) or not isinstance(value, Tensor | torch.SymInt)


def _as_tensor(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Constant) else value


def _as_constant(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.as_subclass(Constant)
    return value


def _as_number(value: Any) -> Any:
    return value.item() if isinstance(value, Constant) else value


class ConstantCoefficients(Coefficients):
    """The coefficients at one time, all of them constants."""

    def __init__(self, coefficients: Coefficients) -> None:
        for name in _VALUES:
            setattr(self, name, constant(getattr(coefficients, name)))
        for name in _PAIRS:
            setattr(self, name, tuple(map(constant, getattr(coefficients, name))))
        self.process, self.parametrization = coefficients.process, coefficients.parametrization


def constant(value: Tensor) -> Constant:
    """The number `value`, a tensor without dimensions, as a constant."""
    return value.detach().as_subclass(Constant)


def constant_table(denoiser: Denoiser, times: Iterable[float]) -> dict[float, Coefficients]:
    """The coefficients of `denoiser` at each of `times` in float32, as constants."""
    table = denoiser.tabulate(times, torch.zeros(()))
    return {t: ConstantCoefficients(entry) for t, entry in table.items()}
