"""A one-step network for what a circuit's ring sums: its first state and K chunks of residuals.

One pass of a U-Net, read at each size of its way up. The coarse sizes predict the first state and
the first chunks, the fine ones the last, as a picture forms from coarse to fine. If there are
several sizes, the chunks of the coarsest are computed from the predicted first state. The image is
read from the sum by a frozen copy of the circuit's own read-out:

    output = X0out(rin + Σ chunks)

The published network has 10 chunks, 4, 3 and 3 of them at 8, 16 and 32 pixels.
"""

from dataclasses import dataclass, field
from operator import attrgetter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.blocks import Images, Norm
from fewstep.backbones.unet import UNet, UNetConfig
from fewstep.circuits.layers import Level, Readout, State, group_count
from fewstep.circuits.lora import freeze
from fewstep.circuits.network import CircuitNet, StateConfig
from fewstep.condition import Condition
from fewstep.errors import InputError


@dataclass(frozen=True)
class ResidualsConfig(BackboneConfig):
    """The defaults are the published ones, as are the circuit's."""

    network: UNetConfig = field(default_factory=UNetConfig)
    """The U-Net whose way up is read."""
    state: StateConfig = field(default_factory=StateConfig)
    """The circuit's."""
    chunks: int = 10
    """Sums of residuals to predict, as many as were recorded; 0: only the last state."""
    blocks: int = 2
    """The circuit's, whose read-out is copied."""

    def __post_init__(self) -> None:
        if self.chunks < 0:
            raise InputError(f"student.backbone.chunks is {self.chunks}; it must be at least 0")

    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "ResidualsNet":
        """Make a network with random weights."""
        return ResidualsNet(self, shape=shape, classes=classes)


class ResidualsNet(Backbone):
    """A U-Net, prediction heads on its sizes, and a circuit's read-out, which is frozen."""

    def __init__(
        self, config: ResidualsConfig, *, shape: tuple[int, ...], classes: int = 0
    ) -> None:
        super().__init__()
        self.config, self.shape, self.classes = config, shape, classes
        self.level_scale = config.network.level_scale
        network, state = config.network, config.state
        self.trunk = UNet(network, shape=shape, classes=classes)
        self.trunk.conv_norm_out = self.trunk.conv_out = nn.Identity()
        side, widths = state.shape(shape)[2], self.trunk.decoder_widths
        sizes = [shape[2] >> i for i in reversed(range(len(widths)))]
        self.chunk_counts = split_chunks(config.chunks, len(sizes))
        # the coarsest is read in any case: it also predicts the first state
        self.sources = [i for i, count in enumerate(self.chunk_counts) if count or i == 0]
        self.branches = nn.ModuleList(
            Branch(widths[i], state.channels, size=sizes[i], side=side) for i in self.sources
        )
        self.first = head(state.channels)
        self.heads = nn.ModuleList(head(state.channels) for _ in range(config.chunks))
        blocks, self.sinusoid = 2 * config.blocks, state.sinusoid(self.trunk.sinusoid)
        self.image_readout = Readout(
            state.channels, shape[0], self.sinusoid, blocks, grow=state.shrink
        )
        freeze(self.image_readout)
        self.register_buffer("end", torch.zeros(()))

    end: Tensor
    """Level of the circuit's last state, at which the image is read."""

    def forward(
        self,
        x: Images,
        level: Level,
        *,
        level_s: Level | None = None,
        cond: Condition | None = None,
    ) -> Images:
        """The image that is read from the sum."""
        if level_s is not None:
            raise ValueError("this network takes no level_s: it always goes to the image")
        first, chunks = self.parts(x, level, cond)
        return self.image(first + chunks.sum(dim=1))

    def features(
        self, x: Images, level: Level, *, cond: Condition | None = None
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Features of the U-Net."""
        return self.trunk.features(x, level, cond=cond)

    def parts(
        self, x: Images, level: Level, cond: Condition | None = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k c h w"]]:
        """Predict the first state and the K sums of residuals that follow it."""
        features = self.trunk.decoder_features(x, level, cond)
        inputs = [
            branch(features[i]) for i, branch in zip(self.sources, self.branches, strict=True)
        ]
        first = self.first(inputs[0])
        if self.config.chunks == 0:
            return first, first.new_zeros(len(first), 0, *first.shape[1:])
        first = self.config.state.normalise(first)
        if len(self.chunk_counts) > 1:  # a lone size needs more than the state for its chunks
            inputs[0] = first
        places = [i for i, count in enumerate(self.chunk_counts) for _ in range(count)]
        chunks = [predict(inputs[i]) for i, predict in zip(places, self.heads, strict=True)]
        return first, torch.stack(chunks, dim=1)

    def image(self, z: State) -> Images:
        """Read the circuit's image from its last state."""
        return self.image_readout(z, self.end.expand(len(z)))

    def copy_readout(self, circuit: CircuitNet, end: Tensor) -> None:
        """Copy the image read-out of `circuit`, to be read at level `end`, where its ring ends.

        Raises: InputError if state, blocks or sinusoid differ from the circuit's.
        """
        mine, theirs = self.config, circuit.config
        if (mine.state, mine.blocks) != (theirs.state, theirs.blocks):
            raise InputError(
                f"student.backbone has {mine.state} and {mine.blocks} blocks, but its circuit has "
                f"{theirs.state} and {theirs.blocks}: use the circuit's"
            )
        if self.sinusoid != circuit.sinusoid:
            raise InputError(
                f"student.backbone.network embeds levels by {self.sinusoid}, but its circuit's "
                f"network by {circuit.sinusoid}: use the same pace, freq_shift and flip_sin_to_cos"
            )
        self.image_readout.load_state_dict(circuit.image_readout.state_dict())
        self.end.copy_(end)

    def copy_encoder(self, circuit: CircuitNet) -> None:
        """Initialise the trunk with the weights of the circuit's encoder.

        Weights that were adapted at low rank are merged.  Raises: InputError if the U-Nets differ.
        """
        mine, theirs = self.config.network, circuit.config.network
        if mine != theirs:
            raise InputError(
                'method.trunk = "circuit" needs student.backbone.network to be the circuit\'s; '
                f"they are {mine} and {theirs}"
            )
        names = self.trunk.state_dict()
        self.trunk.load_state_dict({name: attrgetter(name)(circuit.encoder) for name in names})


def split_chunks(chunks: int, sizes: int) -> tuple[int, ...]:
    """Chunks that each size predicts, coarsest first: equal, the remainder to the coarsest."""
    each, remainder = divmod(chunks, sizes)
    return tuple(each + (i < remainder) for i in range(sizes))


class Branch(nn.Module):
    """Bring features `size` pixels wide to a state's channels and width `side`.

    Smaller features are doubled as often as needed, larger ones folded into channels at once.
    """

    def __init__(self, width: int, width_out: int, *, size: int, side: int) -> None:
        super().__init__()
        doublings, fold = max(side // size, 1).bit_length() - 1, max(size // side, 1)
        widths = [width_out << i for i in reversed(range(doublings + 1))]
        stages: list[nn.Module] = [nn.PixelUnshuffle(fold)] if fold > 1 else []
        stages.append(nn.Conv2d(width * fold**2, widths[0], 3, padding=1))
        for a, b in zip(widths, widths[1:], strict=False):
            stages.append(Layer(a, b, grow=2))
        if doublings:
            stages.append(Layer(width_out, width_out))
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Images) -> Images:
        return self.stages(x)


class Layer(nn.Module):
    """Normalisation, SiLU and a convolution, on `grow` times as many pixels a side."""

    def __init__(self, width: int, width_out: int, *, grow: int = 1) -> None:
        super().__init__()
        self.grow = grow
        self.norm = Norm(group_count(width), width)
        self.conv = nn.Conv2d(width, width_out, 3, padding=1)

    def forward(self, x: Images) -> Images:
        x = functional.silu(self.norm(x))
        if self.grow > 1:
            x = functional.interpolate(x, scale_factor=float(self.grow), mode="nearest")
        return self.conv(x)


def head(width: int) -> nn.Sequential:
    """Predicts one state."""
    return nn.Sequential(Layer(width, width), Layer(width, width))
