"""Noise schedules by the names that other projects give them."""

import math
from typing import Literal

import torch

from fewstep.process import LinearBetas, Process, Table

Schedule = Literal["linear", "cosine", "sigmoid"]


def named_schedule(name: Schedule, steps: int) -> Process:
    """The schedule of this name with `steps` steps, in the usual settings.

    Linear betas from 0.1/steps to 20/steps; the squared cosine of Nichol and Dhariwal 2021,
    arXiv:2102.09672; the sigmoid from −3 to 3 of Jabri et al. 2022, arXiv:2212.11972.
    """
    if name == "linear":
        return LinearBetas(steps, 0.1 / steps, 20 / steps)
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    if name == "cosine":
        signal = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
    else:
        signal = torch.sigmoid(3 - 6 * t) - torch.sigmoid(torch.tensor(-3.0, dtype=torch.float64))
    betas = (1 - signal[1:] / signal[:-1]).clamp(0, 0.999)
    return Table(tuple(torch.cumprod(1 - betas, dim=0).tolist()))
