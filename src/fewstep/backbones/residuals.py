"""From noise at once to what a circuit sums: its first latent and K partial sums of residuals.

One pass of a U-Net, read at each size of its way up. The coarse sizes tell the first latent and the
first chunks, the fine ones the last, as a picture comes about; of several sizes, the chunks of the
coarsest follow from the latent that was told. The image is read from the sum by the circuit's own
frozen head.

    output = X0out(rin + Σ chunks)

The published network has 10 chunks, 4, 3 and 3 of them at 8, 16 and 32 pixels.
"""

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.base import Backbone
from fewstep.backbones.blocks import Images, Norm
from fewstep.backbones.circuit import CircuitNet, LatentConfig, Readout, freeze, groups_of
from fewstep.backbones.unet import UNet, UNetConfig
from fewstep.condition import Condition
from fewstep.errors import InputError


@dataclass(frozen=True)
class ResidualsConfig:
    """The defaults are the published ones, beside the circuit's."""

    name: Literal["residuals"] = "residuals"
    network: UNetConfig = field(default_factory=UNetConfig)
    """The U-Net whose way up is read."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    """The circuit's."""
    chunks: int = 10
    """Partial sums to tell, as many as were recorded; 0: nothing but the last latent."""
    blocks: int = 2
    """The circuit's, whose read-out is copied."""

    def __post_init__(self) -> None:
        if self.chunks < 0:
            raise InputError(f"student.backbone.chunks is {self.chunks}; it must be at least 0")


class ResidualsNet(Backbone):
    """A U-Net, heads on its sizes, and a circuit's read-out, kept as it was given."""

    def __init__(
        self, config: ResidualsConfig, *, shape: tuple[int, ...], classes: int = 0
    ) -> None:
        super().__init__()
        self.config, self.shape, self.classes = config, shape, classes
        self.level_scale = config.network.level_scale
        network, latent = config.network, config.latent
        self.trunk = UNet(network, shape=shape, classes=classes)
        self.trunk.conv_norm_out = self.trunk.conv_out = nn.Identity()
        side, widths = latent.shape(shape)[2], self.trunk.ascent_widths
        sizes = [shape[2] >> i for i in reversed(range(len(widths)))]
        self.homes = shares(config.chunks, len(sizes))
        # the coarsest also tells the first latent
        self.tapped = [i for i, home in enumerate(self.homes) if home or i == 0]
        self.branches = nn.ModuleList(
            Branch(widths[i], latent.channels, size=sizes[i], side=side) for i in self.tapped
        )
        self.first = head(latent.channels)
        self.heads = nn.ModuleList(head(latent.channels) for _ in range(config.chunks))
        blocks, self.told = 2 * config.blocks, latent.told(self.trunk.sinusoid)
        self.picture = Readout(latent.channels, shape[0], self.told, blocks, grow=latent.shrink)
        freeze(self.picture)
        self.register_buffer("end", torch.zeros(()))

    end: Tensor
    """The level at which the read-out is asked: the circuit's last."""

    def forward(
        self,
        x: Images,
        level: Float[Tensor, " b"],
        *,
        level_s: Float[Tensor, " b"] | None = None,
        cond: Condition | None = None,
    ) -> Images:
        if level_s is not None:
            raise ValueError("level_s came; this network goes to the image alone")
        first, chunks = self.parts(x, level, cond)
        return self.image(first + chunks.sum(dim=1))

    def features(
        self, x: Images, level: Float[Tensor, " b"], *, cond: Condition | None = None
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Those of the U-Net."""
        return self.trunk.features(x, level, cond=cond)

    def parts(
        self, x: Images, level: Float[Tensor, " b"], cond: Condition | None = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k c h w"]]:
        """The first latent, and the K partial sums of residuals that follow on it."""
        ascent = self.trunk.ascent(x, level, cond)
        seen = [branch(ascent[i]) for i, branch in zip(self.tapped, self.branches, strict=True)]
        first = self.first(seen[0])
        if self.config.chunks == 0:
            return first, first.new_zeros(len(first), 0, *first.shape[1:])
        first = self.config.latent.normalise(first)
        # the only size must tell its chunks from more than the latent that it told
        inputs = [first, *seen[1:]] if len(self.homes) > 1 else seen
        homes = [home for home, count in enumerate(self.homes) for _ in range(count)]
        told = [tell(inputs[home]) for home, tell in zip(homes, self.heads, strict=True)]
        return first, torch.stack(told, dim=1)

    def image(self, z: Float[Tensor, "b c h w"]) -> Images:
        """The circuit's image of its last latent."""
        return self.picture(z, self.end.expand(len(z)))

    def adopt(self, circuit: CircuitNet, end: Tensor) -> None:
        """Read as `circuit` does where it ends, at the level `end`.

        Raises: InputError where its latent or its blocks are others.
        """
        mine, theirs = self.config, circuit.config
        if (mine.latent, mine.blocks) != (theirs.latent, theirs.blocks):
            raise InputError(
                f"student.backbone has {mine.latent} and {mine.blocks} blocks; "
                f"its circuit {theirs.latent} and {theirs.blocks}"
            )
        if self.told != circuit.told:
            raise InputError(
                f"student.backbone.network counts levels by {self.told}; its circuit's network by "
                f"{circuit.told}: give it the same pace, freq_shift and flip_sin_to_cos"
            )
        self.picture.load_state_dict(circuit.picture.state_dict())
        self.end.copy_(end)

    def follow_encoder(self, circuit: CircuitNet) -> None:
        """Give the trunk the weights of the circuit's encoder: a start in training.

        What was adapted at low rank is taken as it came to be.  Raises: InputError where its
        network is another.
        """
        mine, theirs = self.config.network, circuit.config.network
        if mine != theirs:
            raise InputError(
                'method.trunk = "circuit" needs student.backbone.network to be the circuit\'s; '
                f"they are {mine} and {theirs}"
            )
        names = self.trunk.state_dict()
        self.trunk.load_state_dict({name: attrgetter(name)(circuit.encoder) for name in names})


def shares(chunks: int, sizes: int) -> tuple[int, ...]:
    """How many chunks each size tells, coarsest first: alike, the coarse ones what is over."""
    each, over = divmod(chunks, sizes)
    return tuple(each + (i < over) for i in range(sizes))


class Branch(nn.Module):
    """From a `size` of the way up to the latent's channels and `side`: doubled as often as needed,
    or folded at once."""

    def __init__(self, width: int, latent: int, *, size: int, side: int) -> None:
        super().__init__()
        doublings, fold = max(side // size, 1).bit_length() - 1, max(size // side, 1)
        widths = [latent << i for i in reversed(range(doublings + 1))]
        stages: list[nn.Module] = [nn.PixelUnshuffle(fold)] if fold > 1 else []
        stages.append(nn.Conv2d(width * fold**2, widths[0], 3, padding=1))
        for a, b in zip(widths, widths[1:], strict=False):
            stages.append(Layer(a, b, grow=2))
        if doublings:
            stages.append(Layer(latent, latent))
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Images) -> Images:
        return self.stages(x)


class Layer(nn.Module):
    """A normalisation, SiLU and a convolution, at `grow` times the size."""

    def __init__(self, width: int, width_out: int, *, grow: int = 1) -> None:
        super().__init__()
        self.grow = grow
        self.norm = Norm(groups_of(width), width)
        self.conv = nn.Conv2d(width, width_out, 3, padding=1)

    def forward(self, x: Images) -> Images:
        x = functional.silu(self.norm(x))
        if self.grow > 1:
            x = functional.interpolate(x, scale_factor=float(self.grow), mode="nearest")
        return self.conv(x)


def head(latent: int) -> nn.Sequential:
    """What tells one latent."""
    return nn.Sequential(Layer(latent, latent), Layer(latent, latent))
