"""How a network is told the level, the destination and the class: as one vector a row."""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from fewstep.condition import NO_LABEL, Condition

PERIOD = 10_000  # the longest wavelength, over 2 pi


@dataclass(frozen=True)
class Sinusoid:
    """Features that tell apart levels between 0 and about 1000.

    `sin(level f_k)`, then `cos(level f_k)`, with `f_k = pace 10000^(-k / (width/2 - shift))`.
    Vaswani et al. 2017, arXiv:1706.03762; a shift of 1 as in DDPM, 0 as in diffusers' default.
    """

    width: int
    shift: float = 1.0
    cosine_first: bool = False
    pace: float = 1.0

    def __call__(self, level: Float[Tensor, " b"]) -> Float[Tensor, "b width"]:
        half = self.width // 2
        # half precision cannot count to 1000
        dtype = torch.promote_types(level.dtype, torch.float32)
        k = torch.arange(half, dtype=dtype, device=level.device)
        slower = torch.exp(-math.log(PERIOD) * k / (half - self.shift))
        angle = self.pace * level[:, None] * slower
        parts = [torch.sin(angle), torch.cos(angle)]
        return torch.cat(parts[::-1] if self.cosine_first else parts, dim=1)


class LevelEmbedding(nn.Module):
    """Two layers on the sinusoid, with a SiLU between them; named as in diffusers' checkpoints."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        features = features.to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(features)))


@runtime_checkable
class Informed(Protocol):
    """What a network holds in order to be informed; the names are diffusers' own."""

    classes: int
    sinusoid: Sinusoid
    time_embedding: LevelEmbedding
    time_embedding_s: LevelEmbedding | None
    class_embedding: nn.Embedding | None


def embed(
    net: Informed,
    level: Float[Tensor, " b"],
    level_s: Float[Tensor, " b"] | None,
    cond: Condition | None,
) -> Float[Tensor, "b width"]:
    """The sum of what `net` is told: its level, how far it is to go, and the class.

    A network with two times embeds the difference `level - level_s`, so that "stay here", the
    instantaneous velocity, is the same input at all levels.
    """
    total = net.time_embedding(net.sinusoid(level))
    if net.time_embedding_s is not None:
        distance = torch.zeros_like(level) if level_s is None else level - level_s
        total = total + net.time_embedding_s(net.sinusoid(distance))
    elif level_s is not None:
        raise ValueError("level_s came, but this network has one time: build it with two_times")
    if net.class_embedding is not None:
        total = total + net.class_embedding(class_rows(net.classes, level, cond))
    elif cond is not None:
        raise ValueError("a condition came, but this network knows no classes: build it with some")
    return total


def class_rows(
    classes: int, level: Float[Tensor, " b"], cond: Condition | None
) -> Int64[Tensor, " b"]:
    """Which row of the embedding each image gets: its label, or the last row for none."""
    if cond is None:
        return torch.full_like(level, classes, dtype=torch.int64)
    return torch.where(cond.label == NO_LABEL, classes, cond.label)
