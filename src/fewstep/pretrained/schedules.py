"""Noise schedules by the names that other projects give them."""

import math
from typing import Literal

import torch
from torch import Tensor

from fewstep.errors import InputError
from fewstep.pretrained.betas import MAX_STEPS
from fewstep.process import LinearBetas, Process, Table

Schedule = Literal["linear", "cosine", "sigmoid"]


def named_schedule(name: Schedule, steps: int) -> Process:
    """The schedule of this name with `steps` steps, in the usual settings.

    Raises: InputError for too few steps, or more than a million.

    Linear betas from 0.1/steps to 20/steps; the squared cosine of Nichol and Dhariwal 2021,
    arXiv:2102.09672; the sigmoid from −3 to 3 of Jabri et al. 2022, arXiv:2212.11972.
    """
    if steps > MAX_STEPS:
        raise InputError(f"{steps} noise levels are too many: at most {MAX_STEPS:,} are supported")
    try:
        if name == "linear":
            linear = LinearBetas(steps, 0.1 / steps, 20 / steps)
            _ = linear.table  # raises if it is none
            return linear
        betas = (1 - _ratios(name, steps)).clamp(0, 0.999)
        return Table(tuple(torch.cumprod(1 - betas, dim=0).tolist()))
    except ValueError as error:
        raise InputError(
            f"{steps} steps are too few for the noise schedule {name!r}: {error}"
        ) from error


def _ratios(name: Schedule, steps: int) -> Tensor:
    """The signal's variance after each step, divided by the one before."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    if name == "cosine":
        signal = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    else:
        signal = torch.sigmoid(3 - 6 * t) - torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64))
    return signal[1:] / signal[:-1]
