"""How a network is told the noise level, the destination and the class: as one vector a row."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.condition import NO_LABEL, Condition

PERIOD = 10_000  # longest wavelength / 2 pi of the sinusoid, Vaswani et al. 2017


def sinusoid(
    level: Float[Tensor, " b"], width: int, *, shift: float = 1.0, cosine_first: bool = False
) -> Float[Tensor, "b width"]:
    """Tell apart levels on a range of about 0 to 1000.

    `sin(level f_k)`, then `cos(level f_k)`, with `f_k = 10000^(-k / (width/2 - shift))`.
    Vaswani et al. 2017, arXiv:1706.03762; with shift 1 as in DDPM, with 0 as in diffusers' default.
    """
    half = width // 2
    dtype = torch.promote_types(level.dtype, torch.float32)  # half precision cannot tell 999 steps
    rank = torch.arange(half, dtype=dtype, device=level.device)
    angle = level[:, None] * torch.exp(rank * -math.log(PERIOD) / (half - shift))
    sine, cosine = torch.sin(angle), torch.cos(angle)
    return torch.cat([cosine, sine] if cosine_first else [sine, cosine], dim=1)


class LevelEmbedding(nn.Module):
    """Two layers with a SiLU between them, on the sinusoid; named as in diffusers' checkpoints."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Float[Tensor, "b i"]) -> Float[Tensor, "b width"]:
        hidden = functional.silu(self.linear_1(features.to(self.linear_1.weight.dtype)))
        return self.linear_2(hidden)


def class_rows(cond: Condition | None, classes: int, like: Float[Tensor, "b *_"]) -> Tensor:
    """The row of a class embedding for each image: its label, or the last row for none."""
    if cond is None:
        return torch.full((like.shape[0],), classes, dtype=torch.int64, device=like.device)
    return torch.where(cond.label == NO_LABEL, classes, cond.label)
