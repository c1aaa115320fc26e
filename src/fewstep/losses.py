"""Distances that several methods share. Each returns one number a row, of shape (b,)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, " b"]
Distance = Callable[[Tensor, Tensor], Rows]


def square_error(a: Float[Tensor, "b ..."], b: Float[Tensor, "b ..."]) -> Rows:
    """The mean square difference of each row."""
    return (a - b).square().flatten(1).mean(1)


@dataclass(frozen=True)
class SquareError:
    """The mean square difference."""

    name: Literal["mse"] = "mse"

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return square_error(a, b)


@dataclass(frozen=True)
class PseudoHuber:
    """√(|a − b|² + c²) − c over a row's elements, c = 0: the plain norm.

    Song and Dhariwal 2023, arXiv:2310.14189, whose c is 0.00054·√(elements).
    """

    name: Literal["pseudo-huber"] = "pseudo-huber"
    c: float = 0.00054
    """Where the distance turns from square to linear, in units of √(elements of a row)."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        square = (a - b).square().flatten(1).sum(1)
        width = self.c * a[0].numel() ** 0.5
        # the plain norm has no gradient at 0: a floor below any real error keeps it finite
        return torch.sqrt(square + max(width, 1e-8) ** 2) - width


DistanceConfig = SquareError | PseudoHuber
