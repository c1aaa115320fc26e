"""Noise schedules of diffusers: betas, by formula or listed, as a process."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from fewstep.process import LinearBetas, Process, Table

ZERO_SNR = 1e-12
"""The cumulative product of a last level without signal: sigma/alpha is 1e6 there."""
BETA_MAX = 0.999
MAX_STEPS = 1_000_000
"""Largest number of noise levels."""

Schedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp", "laplace"]


@dataclass(frozen=True)
class Betas:
    """Settings of a noise schedule with diffusers' defaults."""

    num_train_timesteps: Annotated[PositiveInt, Field(le=MAX_STEPS)] = 1000
    beta_start: Annotated[float, Field(ge=0, le=1)] = 1e-4
    beta_end: Annotated[float, Field(ge=0, le=1)] = 0.02
    beta_schedule: Schedule = "linear"
    trained_betas: Annotated[tuple[float, ...], Field(min_length=2)] | None = None
    rescale_betas_zero_snr: bool = False

    @property
    def levels(self) -> int:
        """Number of noise levels."""
        return self.num_train_timesteps if self.trained_betas is None else len(self.trained_betas)

    def process(self, zero_snr: float = ZERO_SNR) -> Process:
        """`LinearBetas` if the betas are equally spaced, else a table.

        The cumulative product of a last level without signal is `zero_snr`.  Raises: ValueError if
        the betas do not make a noise schedule.
        """
        betas = self._betas()
        if not ((betas >= 0) & (betas <= 1)).all():
            raise ValueError("each must be from 0 to 1")
        steps, first, last = len(betas), float(betas[0]), float(betas[-1])
        if not self.ends_in_noise:
            linear = None
            if self.trained_betas is None and self.beta_schedule == "linear":
                linear = LinearBetas(steps, self.beta_start, self.beta_end)
            # up to rounding, which differs between projects
            elif torch.allclose(betas, torch.linspace(first, last, steps), rtol=1e-6, atol=0.0):
                linear = LinearBetas(steps, first, last)
            if linear is not None:
                _ = linear.table  # raises if it is none
                return linear
        products = torch.cumprod(1 - betas.double(), dim=0)
        if self.rescale_betas_zero_snr:
            products = _rescale(products)
        return Table(tuple(_lift(products, zero_snr).tolist()))

    @property
    def ends_in_noise(self) -> bool:
        """Whether the last level has no signal, so that the image cannot be read from its noise."""
        betas = self.trained_betas
        return self.rescale_betas_zero_snr or (betas is not None and betas[-1] == 1)

    def _betas(self) -> Tensor:
        """Betas in float32, the dtype in which diffusers trains."""
        steps, first, last = self.num_train_timesteps, self.beta_start, self.beta_end
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas)
        match self.beta_schedule:
            case "linear":
                return torch.linspace(first, last, steps)
            case "scaled_linear":
                return torch.linspace(first**0.5, last**0.5, steps) ** 2
            case "sigmoid":  # Xu et al. 2022, arXiv:2203.02923
                return torch.sigmoid(torch.linspace(-6, 6, steps)) * (last - first) + first
            case name:
                abar = _signal(name, torch.arange(steps + 1, dtype=torch.float64) / steps)
                return (1 - abar[1:] / abar[:-1]).clamp(max=BETA_MAX).float()


def _signal(name: str, t: Tensor) -> Tensor:
    """The cumulative product at the time t, up to a factor."""
    if name == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, arXiv:2102.09672
        return torch.cos(0.5 * math.pi * (t + 0.008) / 1.008).square()
    if name == "exp":
        return torch.exp(-12 * t)
    # the SNR is Laplace distributed: Hang et al. 2024, arXiv:2407.03297; diffusers' table holds the
    # square root of the signal's variance
    log_snr = (
        -0.5 * torch.copysign(torch.ones(()), 0.5 - t) * torch.log1p(1e-6 - 2 * (0.5 - t).abs())
    )
    return torch.sigmoid(log_snr).sqrt()


def _rescale(products: Tensor) -> Tensor:
    """Shift and scale the signal so that it ends at 0.  Lin et al. 2023, arXiv:2305.08891."""
    signal = products.sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()


def _lift(products: Tensor, lowest: float) -> Tensor:
    """The products with a last level without signal raised to `lowest`, still decreasing."""
    if products[-1] > 0:
        return products
    last = int((products > lowest).sum()) - 1
    count = len(products) - 1 - last
    share = torch.arange(1, count + 1, dtype=products.dtype) / count
    tail = products[last] * (lowest / products[last]) ** share
    return torch.cat([products[: last + 1], tail])
