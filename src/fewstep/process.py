"""Noising processes: `x_t = alpha(t)·x0 + sigma(t)·eps`, with t from 0 (data) to 1 (noise).

A `Process` defines `alpha`, `sigma` and `time`, the inverse of the ratio sigma/alpha. The rest
follows from them: the time derivatives (`rates`) by forward-mode differentiation, which a subclass
may replace by closed forms, and the broadcasting of times against images in `Process.at`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le, MaxLen
from torch import Tensor

from fewstep.ranges import Positive, PositiveFraction, Probability


@dataclass(frozen=True)
class Process(ABC):
    """Base class of noising processes with continuous time in [0, 1].

    Subclasses are frozen dataclasses. All functions map a tensor of times to one of equal shape.
    """

    noun: ClassVar[str] = "process"

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Scale of the image at `t`, at least 0."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Scale of the noise at `t`, at least 0."""

    @abstractmethod
    def time(self, ratio: Tensor) -> Tensor:
        """The time at which sigma/alpha is `ratio` (0 … inf), clamped to [0, 1]."""

    @property
    def levels(self) -> float:
        """Noise level of a network at t = 1, in the units of its time embedding."""
        return 1000.0

    @property
    def input_process(self) -> "Process":
        """The process whose x_t a new network takes as its input: this one, unless it has none that
        suit a network. The x_t of the two differ by a factor."""
        return self

    def ratio(self, t: Tensor) -> Tensor:
        """sigma/alpha at `t`; it increases with t, and is infinite where alpha is 0."""
        return self.sigma(t) / self.alpha(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha/dt, d sigma/dt) at `t`, by forward-mode differentiation."""
        return _rate(self.alpha, t), _rate(self.sigma, t)

    def at(self, t: Tensor | float, *, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at `t`, of shape (b, 1, ...) to multiply the batch `like` (b, ...).

        `t` is one number for all rows or a vector (b,).  Raises: ValueError for another shape.
        """
        # a vector (32,) would broadcast along the width of (32, 3, 32, 32) without an error
        time = as_times(t, like)
        return broadcast_to(self.alpha(time), like), broadcast_to(self.sigma(time), like)

    def rates_at(self, t: Tensor | float, *, like: Tensor) -> tuple[Tensor, Tensor]:
        """The rates at `t`, of the same shape as `at` returns."""
        alpha_rate, sigma_rate = self.rates(as_times(t, like))
        return broadcast_to(alpha_rate, like), broadcast_to(sigma_rate, like)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor | float) -> Tensor:
        """x_t = alpha·x0 + sigma·eps."""
        alpha, sigma = self.at(t, like=x0)
        return alpha * x0 + sigma * eps

    def start(self, noise: Tensor, t: Tensor | float) -> Tensor:
        """sigma·noise, the state at which a sample from standard normal `noise` starts at `t`."""
        return self.at(t, like=noise)[1] * noise


def as_times(t: Tensor | float, like: Tensor) -> Tensor:
    """`t` as a vector of one time for each row of `like`, in float32 or float64.

    Raises: ValueError for a tensor that is neither one number nor of shape (b,).
    """
    if not isinstance(t, Tensor):
        t = torch.tensor(float(t), dtype=torch.float64)
    time = t.to(like.device, torch.promote_types(t.dtype, torch.float32))
    if time.ndim == 0:
        return time.repeat(like.shape[0])
    if time.ndim != 1 or time.shape[0] != like.shape[0]:
        raise ValueError(
            f"times have shape {tuple(time.shape)}; use one number, or one for each of the "
            f"{like.shape[0]} rows"
        )
    return time


def broadcast_to(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one value per row to (b, 1, ...) against `like`; in its dtype, at least float32."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return values.to(dtype).reshape(-1, *[1] * (like.ndim - 1))


def _rate(scale: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    return torch.func.jvp(scale, (t,), (torch.ones_like(t),))[1]


@dataclass(frozen=True)
class Flow(Process):
    """Straight lines from data to noise: alpha = 1 − t, sigma = t.  Liu et al. 2022, 2209.03003."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        # a new tensor: under jvp a function must not return its input
        return 1 * t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, ratio: Tensor) -> Tensor:
        # r/(1 + r), written so that an infinite ratio gives 1
        return 1 / (1 + 1 / ratio)


@dataclass(frozen=True)
class VP(Process):
    """Variance preserving, linear beta: alpha = exp(−B/2), B = ½(b₁−b₀)t² + b₀t.

    Song et al. 2021, arXiv:2011.13456.
    """

    beta_0: Positive = 0.1
    beta_1: Positive = 20.0

    def _integral(self, t: Tensor) -> Tensor:
        return t * (0.5 * (self.beta_1 - self.beta_0) * t + self.beta_0)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, half_beta = self.alpha(t), 0.5 * ((self.beta_1 - self.beta_0) * t + self.beta_0)
        return -half_beta * alpha, half_beta * alpha.square() / self.sigma(t)

    def time(self, ratio: Tensor) -> Tensor:
        # the root of B(t) = ln(1 + r²), rationalised: no cancellation at small ratios
        integral = torch.log1p(ratio.square()).clamp(max=0.5 * (self.beta_0 + self.beta_1))
        root = torch.sqrt(self.beta_0**2 + 2 * (self.beta_1 - self.beta_0) * integral)
        return (2 * integral / (root + self.beta_0)).clamp(0, 1)


@dataclass(frozen=True)
class VE(Process):
    """Variance exploding: alpha = 1, sigma = sigma_max·t.

    Linear in t, so that Heun's steps in t are Heun's steps in sigma; the grid spaces them.
    """

    sigma_max: Positive = 80.0

    @property
    def input_process(self) -> Process:
        # its x_t are up to sigma_max large: on a circle they have the size of the images
        return Cosine()

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_max * t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.full_like(t, self.sigma_max)

    def time(self, ratio: Tensor) -> Tensor:
        return (ratio / self.sigma_max).clamp(0, 1)


@dataclass(frozen=True)
class Cosine(Process):
    """A quarter circle, as in TrigFlow: alpha = cos(πt/2), sigma = sigma_data·sin(πt/2).

    Lu and Song 2024, arXiv:2410.11081.
    """

    sigma_data: Positive = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        # cos(π/2) is slightly negative in floating point; this sine is exactly 0 at t = 1
        return torch.sin(0.5 * math.pi * (1 - t))

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_data * torch.sin(0.5 * math.pi * t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha_rate = -0.5 * math.pi * torch.sin(0.5 * math.pi * t)
        return alpha_rate, 0.5 * math.pi * self.sigma_data * self.alpha(t)

    def time(self, ratio: Tensor) -> Tensor:
        return (torch.atan(ratio / self.sigma_data) * (2 / math.pi)).clamp(0, 1)


@dataclass(frozen=True)
class Table(Process):
    """A discrete schedule in continuous time: t = i/(T−1) is exactly step i of a T-step DDPM.

    Variance preserving; ln(sigma/alpha) is interpolated linearly in t. Rates at a knot are those
    to its right.  Raises: ValueError unless `alphas_cumprod` decreases strictly within (0, 1).
    """

    alphas_cumprod: Annotated[tuple[Probability, ...], MaxLen(10_000)]

    def __post_init__(self) -> None:
        values = (1.0, *self.alphas_cumprod, 0.0)
        # "not all" refuses NaN too
        if len(values) < 4 or not all(a > b for a, b in zip(values, values[1:], strict=False)):
            raise ValueError(
                "alphas_cumprod must be two or more values that decrease within (0, 1)"
            )

    @cached_property
    def _log_ratios(self) -> Tensor:
        table = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        return 0.5 * torch.log((1 - table) / table)

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    @property
    def levels(self) -> float:
        return float(self.steps - 1)

    def _log_ratio(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """ln(sigma/alpha) at `t`, and its slope."""
        position = t * (self.steps - 1)
        # t = i/(T−1) rounds to either side of its knot: what is slightly below counts as on it
        margin = 1e-9 if t.dtype == torch.float64 else 1e-4
        index = torch.floor(position.detach() + margin).clamp(0, self.steps - 2).long()
        knots = self._log_ratios.to(t.device)
        left, right = knots[index].to(t.dtype), knots[index + 1].to(t.dtype)
        return left + (position - index) * (right - left), (right - left) * (self.steps - 1)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(-2 * self._log_ratio(t)[0]))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(2 * self._log_ratio(t)[0]))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_ratio, slope = self._log_ratio(t)
        alpha_square, sigma_square = torch.sigmoid(-2 * log_ratio), torch.sigmoid(2 * log_ratio)
        alpha_rate = -slope * sigma_square * torch.sqrt(alpha_square)
        return alpha_rate, slope * alpha_square * torch.sqrt(sigma_square)

    def time(self, ratio: Tensor) -> Tensor:
        knots = self._log_ratios.to(ratio.device)
        log_ratio = torch.log(ratio).to(torch.float64).clamp(knots[0], knots[-1])
        index = (torch.searchsorted(knots, log_ratio.detach(), right=True) - 1).clamp(
            0, self.steps - 2
        )
        share = (log_ratio - knots[index]) / (knots[index + 1] - knots[index])
        return ((index + share) / (self.steps - 1)).to(ratio.dtype)


@dataclass(frozen=True)
class LinearBetas(Process):
    """DDPM's table: betas increase linearly over the steps.  Ho et al. 2020, arXiv:2006.11239."""

    steps: Annotated[int, Ge(2), Le(10_000)] = 1000
    beta_0: PositiveFraction = 1e-4
    beta_1: PositiveFraction = 0.02

    def __post_init__(self) -> None:
        try:
            _ = self.table
        except ValueError as error:
            raise ValueError(
                f"with {self.steps} steps of betas from {self.beta_0:g} to {self.beta_1:g}, alpha "
                "does not decrease within (0, 1): lower beta_1 or steps"
            ) from error

    @cached_property
    def table(self) -> Table:
        """The cumulative products of 1 − beta."""
        betas = torch.linspace(self.beta_0, self.beta_1, self.steps, dtype=torch.float64)
        return Table(tuple(torch.cumprod(1 - betas, dim=0).tolist()))

    @property
    def levels(self) -> float:
        return self.table.levels

    def alpha(self, t: Tensor) -> Tensor:
        return self.table.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.table.sigma(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.table.rates(t)

    def time(self, ratio: Tensor) -> Tensor:
        return self.table.time(ratio)
