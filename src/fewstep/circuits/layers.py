"""Layers around the U-Nets of a circuit. All take the noise level as an input."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.attention import Images, group_norm
from fewstep.backbones.embedding import LevelEmbedding, Sinusoid

State = Float[Tensor, "b state _ _"]
Level = Float[Tensor, " b"]


class Block(nn.Module):
    """Residual block of two convolutions, shifted and scaled by the level.

    It is initialised as the identity. `sinusoid` has the same pace as the U-Net's embedding, while
    the published one goes through one turn from the lowest to the highest level.
    """

    def __init__(self, width: int, sinusoid: Sinusoid) -> None:
        super().__init__()
        self.sinusoid = sinusoid
        self.groups = group_count(width)
        self.level = LevelEmbedding(sinusoid.width, 4 * width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        for module in (self.level.linear_2, self.conv2):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Images, level: Level) -> Images:
        film = self.level(self.sinusoid(level))[:, :, None, None].chunk(4, dim=1)
        hidden = self.conv1(functional.silu(self._modulate(x, *film[:2])))
        return x + self.conv2(functional.silu(self._modulate(hidden, *film[2:])))

    def _modulate(self, x: Images, scale: Tensor, shift: Tensor) -> Images:
        return group_norm(x, self.groups) * (1 + 0.1 * scale) + shift


class Adapter(nn.Module):
    """Map `width_in` channels to `width_out` through residual blocks of `width` channels.

    Height and width are divided by `shrink`, whose pixels are moved into the channels first.
    """

    def __init__(
        self, width_in: int, width: int, width_out: int, sinusoid: Sinusoid, blocks: int, *,
        shrink: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.fold = nn.PixelUnshuffle(shrink)
        self.first = nn.Conv2d(width_in * shrink**2, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, sinusoid) for _ in range(blocks))
        self.last = nn.Conv2d(width, width_out, 3, padding=1)

    def forward(self, x: Images, level: Level) -> Images:
        x = self.first(self.fold(x))
        for block in self.blocks:
            x = block(x, level)
        return self.last(functional.silu(x))


class Readout(nn.Module):
    """Map a state to an image, through residual blocks and a linear skip connection around them.

    Height and width are multiplied by `grow`.
    """

    def __init__(
        self, width: int, channels: int, sinusoid: Sinusoid, blocks: int, *, grow: int = 1
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width, width, 1)
        self.blocks = nn.ModuleList(Block(width, sinusoid) for _ in range(blocks))
        self.last = nn.Conv2d(width, channels * grow**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(grow)
        nn.init.zeros_(self.skip.weight)
        nn.init.xavier_uniform_(self.last.weight, gain=1e-5)
        for layer in (self.skip, self.last):
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, z: State, level: Level) -> Images:
        x = self.first(z)
        for block in self.blocks:
            x = block(x, level)
        return self.unfold(self.last(functional.silu(x + self.skip(z))))


class Gate(nn.Module):
    """The logit of a residual's weight, one per row.

    Its inputs are the level and the difference to the level of the destination.
    """

    def __init__(self, sinusoid: Sinusoid) -> None:
        super().__init__()
        self.sinusoid = sinusoid
        self.first = nn.Linear(2 * sinusoid.width, sinusoid.width)
        self.last = nn.Linear(sinusoid.width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, level: Level, level_s: Level) -> Level:
        features = torch.cat([self.sinusoid(level), self.sinusoid(level - level_s)], dim=1)
        hidden = self.first(features.to(self.first.weight.dtype))
        return self.last(functional.silu(hidden)).flatten()


def group_count(width: int) -> int:
    """Number of groups in the normalisation of `width` channels: 32, as published, or fewer.

    At least four channels share a group: a group of one constant channel would be normalised to 0.
    """
    return max(n for n in range(1, max(min(width // 4, 32), 1) + 1) if width % n == 0)
