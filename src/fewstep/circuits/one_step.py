"""One-step student of a circuit: predicts the initial state and K residual chunks.

A circuit's ring adds a residual to its state in every update. A chunk is the sum of the residuals
of one of K equal parts of the ring, so that the initial state and all chunks add up to the ring's
last state.

The network is one U-Net, with prediction heads at each size of its decoder. The coarse sizes
predict the initial state and the first chunks, the fine sizes the last chunks, because an image
forms from coarse to fine. If there are several sizes, the chunks of the coarsest are computed from
the predicted initial state. A frozen copy of the circuit's read-out maps the sum to the image:

    output = X0out(rin + Σ chunks)

The published network predicts 10 chunks: 4, 3 and 3 at the sizes of 8, 16 and 32 pixels.
"""

from dataclasses import dataclass, field
from operator import attrgetter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.attention import Images
from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.blocks import Norm
from fewstep.backbones.unet import UNet, UNetConfig
from fewstep.circuits.layers import Level, Readout, State, group_count
from fewstep.circuits.lora import freeze
from fewstep.circuits.network import CircuitNet, StateConfig, check_patch
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.ranges import CountOrZero, DepthOrZero
from fewstep.tables import check_fields


@dataclass(frozen=True)
class ResidualsConfig(BackboneConfig):
    """Settings of a `ResidualsNet`. The defaults are the published ones."""

    network: UNetConfig = field(default_factory=UNetConfig)
    """The U-Net, whose decoder the prediction heads read."""
    state: StateConfig = field(default_factory=StateConfig)
    """Channels, shrink and groups of the hidden state, which must be the circuit's."""
    chunks: CountOrZero = 10
    """Number of residual chunks to predict, as recorded; 0 predicts only the last state."""
    blocks: DepthOrZero = 2
    """The circuit's `blocks`: they set the depth of the read-out, which is copied from it."""

    def __post_init__(self) -> None:
        check_fields(self, "student.backbone")
        check_patch(self.network, self.state)

    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "ResidualsNet":
        """Build a network with random weights."""
        return ResidualsNet(self, shape=shape, classes=classes)


class ResidualsNet(Backbone):
    """A U-Net with prediction heads at its decoder's sizes, and a circuit's frozen read-out."""

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
        sizes = [shape[2] // network.patch >> i for i in reversed(range(len(widths)))]
        self.chunk_counts = split_chunks(config.chunks, len(sizes))
        # the coarsest size is always used, because it also predicts the initial state
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
        """The image (b, c, h, w) that is read from the predicted last state.

        Raises: ValueError for a `level_s`.
        """
        if level_s is not None:
            raise ValueError("this network takes no level_s: it always predicts the image")
        state, chunks = self.parts(x, level, cond)
        return self.image(state + chunks.sum(dim=1))

    def features(
        self, x: Images, level: Level, *, cond: Condition | None = None
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Features of the U-Net."""
        return self.trunk.features(x, level, cond=cond)

    def parts(
        self, x: Images, level: Level, cond: Condition | None = None
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b k c h w"]]:
        """Predict the initial state and the K residual chunks."""
        features = self.trunk.decoder_features(x, level, cond)
        inputs = [
            branch(features[i]) for i, branch in zip(self.sources, self.branches, strict=True)
        ]
        state = self.first(inputs[0])
        if self.config.chunks == 0:
            return state, state.new_zeros(len(state), 0, *state.shape[1:])
        state = self.config.state.normalise(state)
        if len(self.chunk_counts) > 1:  # with one size, the state alone would not suffice
            inputs[0] = state
        sizes = [i for i, count in enumerate(self.chunk_counts) for _ in range(count)]
        chunks = [predict(inputs[i]) for i, predict in zip(sizes, self.heads, strict=True)]
        return state, torch.stack(chunks, dim=1)

    def image(self, z: State) -> Images:
        """Read the image (b, c, h, w) from the circuit's last state."""
        return self.image_readout(z, self.end.expand(len(z)))

    def copy_readout(self, circuit: CircuitNet, end: Tensor) -> None:
        """Copy the image read-out of `circuit`; `end` is the level at which its ring ends.

        Raises: InputError if state, blocks or sinusoid differ from the circuit's.
        """
        mine, theirs = self.config, circuit.config
        if (mine.state, mine.blocks) != (theirs.state, theirs.blocks):
            raise InputError(
                f"student.backbone has {mine.state} and {mine.blocks} blocks, but its circuit has "
                f"{theirs.state} and {theirs.blocks}: set state and blocks to the circuit's"
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

        Low-rank adapters are merged into the weights.  Raises: InputError if the U-Nets differ.
        """
        mine, theirs = self.config.network, circuit.config.network
        if mine != theirs:
            raise InputError(
                'method.trunk = "circuit" needs student.backbone.network to be the circuit\'s: '
                f"it is {mine}, but must be {theirs}"
            )
        names = self.trunk.state_dict()
        self.trunk.load_state_dict({name: attrgetter(name)(circuit.encoder) for name in names})


def split_chunks(chunks: int, sizes: int) -> tuple[int, ...]:
    """Number of chunks that each size predicts, coarsest first.

    The numbers are equal, except that the coarsest sizes predict one more if there is a remainder.
    """
    each, remainder = divmod(chunks, sizes)
    return tuple(each + (i < remainder) for i in range(sizes))


class Branch(nn.Module):
    """Map features that are `size` pixels wide to a state's channels and width `side`.

    The width of smaller features is doubled repeatedly; pixels of larger features are moved into
    channels in one step.
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
    """Normalisation, SiLU, upsampling by the factor `grow`, and a convolution."""

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
    """A prediction head for one state or chunk."""
    return nn.Sequential(Layer(width, width), Layer(width, width))
