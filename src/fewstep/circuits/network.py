"""The network of a denoising circuit: encode an image into a state, update it, and read it out.

    encode     z_t = norm(adapter(trunk(x_t, t)))                            `encode`, Rin
    update     z_s = norm(z_t + step·sigmoid(e(t, s))·residual(z_t, t, s))   `advance`, R
    read out   output = Rout(z_t, t),   x0 = X0out(z_t, t)                   `read`, `image`

`norm` is a group normalisation without parameters: at every time the state has mean 0 and variance
1 in each group. States therefore neither vanish nor explode over many updates, and the last state
is nearly the first one plus a sum of small residuals. `forward` encodes and reads the output, so
that the circuit can be used as any other backbone. Source: github.com/shuntama/denoising-circuits

The trunks are two copies of one U-Net, one in the encoder and one in the update. If a teacher has
the same U-Net, both start from its weights. They are trained in full or, with `lora`, in part: the
attention gets low-rank adapters (`lora.py`), norms and time embedding are trained, all other
weights are frozen.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.backbones.attention import Images, group_norm
from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.embedding import Sinusoid
from fewstep.backbones.unet import UNet, UNetConfig
from fewstep.circuits.layers import Adapter, Gate, Level, Readout, State
from fewstep.circuits.lora import ORIGINAL, add_lora
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.ranges import Channels, DepthOrZero, Positive
from fewstep.tables import check_fields, to_table

NEW = ("time_embedding_s", "class_embedding")
"""Modules that a pretrained network may lack; they are trained with `lora`, too."""


@dataclass(frozen=True)
class StateConfig:
    """Size of a circuit's hidden state; a network that predicts its states needs the same."""

    channels: Channels = 128
    """Channels of the state."""
    shrink: Literal[1, 2, 4, 8, 16] = 1
    """The images' height and width divided by the state's."""
    groups: Channels = 32
    """Number of groups in the state's normalisation, which has no parameters."""

    def __post_init__(self) -> None:
        check_fields(self, "student.backbone.state")
        if self.channels % self.groups:
            raise InputError(
                f"the state has channels {self.channels} and groups {self.groups}: groups must "
                "divide channels"
            )

    def shape(self, image: tuple[int, ...]) -> tuple[int, int, int]:
        """State shape (channels, height, width) for images of shape `image`.

        Raises: InputError for shapes that are not images, or not divisible by `shrink`.
        """
        if len(image) != 3 or image[1] % self.shrink or image[2] % self.shrink:
            raise InputError(
                f"the state's shrink {self.shrink} does not fit samples of shape {image}: height "
                "and width must be divisible by it"
            )
        return self.channels, image[1] // self.shrink, image[2] // self.shrink

    def sinusoid(self, network: Sinusoid) -> Sinusoid:
        """The embedding of the level in `network`, with the number of features for this state."""
        return replace(network, width=max(self.channels + self.channels % 2, 16))

    def normalise(self, z: State) -> State:
        """Shift and scale each group of channels of each row to mean 0 and variance 1."""
        # with a larger eps, small states would not reach variance 1, nor would a second call be
        # without effect
        return group_norm(z, self.groups, eps=1e-8)


def check_patch(network: UNetConfig, state: StateConfig) -> None:
    """Raise InputError for a U-Net whose decoder ends at a smaller size than the state's."""
    if state.shrink % network.patch:
        raise InputError(
            f"the state's shrink {state.shrink} is not divisible by the patch {network.patch} of "
            "student.backbone.network: a state cannot be larger than the U-Net's own images"
        )


@dataclass(frozen=True)
class CircuitConfig(BackboneConfig):
    """Settings of a `CircuitNet`.

    The defaults are the published ones, with the U-Net of google/ddpm-cifar10-32.
    """

    network: UNetConfig = field(default_factory=UNetConfig)
    """The U-Net. Encoder and update have one each, with weights of their own."""
    state: StateConfig = field(default_factory=StateConfig)
    """Channels, shrink and groups of the hidden state."""
    blocks: DepthOrZero = 2
    """Residual blocks in each adapter of the update; encoder and read-outs have twice as many."""
    step: Positive = 0.3
    """Upper bound of the learned factor of a residual, whose initial value is half of it."""
    lora: Annotated[int, Ge(0), Le(65_536)] = 0
    """Rank of the low-rank adapters in a pretrained U-Net's attention; 0 trains all weights."""
    lora_alpha: Positive = 16.0
    """Scale of the adapters: they are multiplied by lora_alpha / lora."""

    def __post_init__(self) -> None:
        check_fields(self, "student.backbone")
        check_patch(self.network, self.state)

    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "CircuitNet":
        """Build a network with random weights."""
        return CircuitNet(self, shape=shape, classes=classes)


class CircuitNet(Backbone):
    """Encoder, update and two read-outs.

    Initially the update returns its input, because its last layer is zero, and the outputs of the
    read-outs are nearly zero.
    """

    def __init__(self, config: CircuitConfig, *, shape: tuple[int, ...], classes: int = 0) -> None:
        super().__init__()
        self.config, self.shape, self.classes = config, shape, classes
        self.level_scale = config.network.level_scale
        width, channels = config.network.channels[0], config.state.channels
        self.encoder = UNet(config.network, shape=shape, classes=classes)
        self.encoder.conv_out = self.encoder.unfold = nn.Identity()
        self.sinusoid = sinusoid = config.state.sinusoid(self.encoder.sinusoid)
        self.update = UNet(_update_config(config), shape=(width, *config.state.shape(shape)[1:]),
                           classes=classes)  # fmt: skip
        self.update.conv_in = self.update.conv_out = nn.Identity()
        shrink, blocks = config.state.shrink, config.blocks
        fold = shrink // config.network.patch
        self.encoder_out = Adapter(width, channels, channels, sinusoid, 2 * blocks, shrink=fold)
        self.adapter_in = Adapter(channels, width, width, sinusoid, blocks)
        both = width + channels
        self.adapter_out = Adapter(both, both, channels, sinusoid, blocks)
        nn.init.zeros_(self.adapter_out.last.weight)
        nn.init.zeros_(self.adapter_out.last.bias)  # pyright: ignore[reportArgumentType]
        self.gate = Gate(sinusoid)
        self.output_readout = Readout(channels, shape[0], sinusoid, 2 * blocks, grow=shrink)
        self.image_readout = Readout(channels, shape[0], sinusoid, 2 * blocks, grow=shrink)
        if config.lora:
            for trunk, trainable in ((self.encoder, (*NEW, "conv_in")), (self.update, NEW)):
                add_lora(trunk, config.lora, config.lora_alpha, trainable)

    def forward(
        self,
        x: Images,
        level: Level,
        *,
        level_s: Level | None = None,
        cond: Condition | None = None,
    ) -> Images:
        """Encode `x` and read the output (b, c, h, w) from its state.

        Raises: ValueError for a `level_s`.
        """
        if level_s is not None:
            raise ValueError("a circuit's output takes no level_s: it depends on one time")
        return self.read(self.encode(x, level, cond), level)

    def features(
        self, x: Images, level: Level, *, cond: Condition | None = None
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Features of the encoder's U-Net, then the state."""
        return [*self.encoder.features(x, level, cond=cond), self.encode(x, level, cond)]

    @property
    def trunks(self) -> tuple[nn.Module, ...]:
        """The two U-Nets."""
        return self.encoder, self.update

    def encode(self, x: Images, level: Level, cond: Condition | None = None) -> State:
        """Rin: the state of the images `x` at `level`."""
        hidden = self.encoder(x, level, cond=cond)
        return self.config.state.normalise(self.encoder_out(hidden, level))

    def advance(
        self, z: State, level: Level, level_s: Level, cond: Condition | None = None
    ) -> State:
        """R: the state at `level_s` from the one at `level`."""
        inner = self.update(self.adapter_in(z, level), level, level_s=level_s, cond=cond)
        residual = self.adapter_out(torch.cat([inner, z], dim=1), level)
        factor = self.config.step * torch.sigmoid(self.gate(level, level_s))
        return self.config.state.normalise(z + factor[:, None, None, None] * residual)

    def read(self, z: State, level: Level) -> Images:
        """Rout: the raw output, which the denoiser's parametrization interprets."""
        return self.output_readout(z, level)

    def image(self, z: State, level: Level) -> Images:
        """X0out: the image x0 (b, c, h, w)."""
        return self.image_readout(z, level)

    def copy_encoder(self) -> None:
        """Copy the weights of the encoder's U-Net that the update's U-Net also has."""
        self.update.load_state_dict(self.encoder.state_dict(), strict=False)

    def load_teacher(self, teacher: Backbone | None) -> None:
        """Load the weights of a teacher's U-Net into both trunks, if it has the same settings.

        Raises: InputError if it has not, or is missing, and `lora` keeps its weights.
        """
        problem = (
            "there is none: set teacher.load" if teacher is None else self.why_not_from(teacher)
        )
        if problem and self.config.lora:
            raise InputError(f"student.backbone.lora keeps the weights of a teacher, and {problem}")
        if problem or teacher is None:
            return
        pretrained = teacher.state_dict()
        for trunk in (self.encoder, self.update):
            state = trunk.state_dict()
            keys = {name: name.replace(ORIGINAL, "weight") for name in state}
            common = {name: pretrained[key] for name, key in keys.items() if key in pretrained}
            trunk.load_state_dict({**state, **common})

    def why_not_from(self, teacher: Backbone) -> str:
        """The reason why the trunks cannot start from a teacher's weights; empty if they can."""
        if not isinstance(teacher, UNet):
            return f"the teacher's network is not a unet, but a {type(teacher).__name__}"
        mine, theirs = to_table(self.config.network), to_table(teacher.config)
        settings = [
            f"{key} = {mine.get(key)} and the teacher's {theirs.get(key)}"
            for key in {**mine, **theirs}
            if key not in ("dropout", "two_times") and mine.get(key) != theirs.get(key)
        ]
        if not settings:
            return ""
        return (
            f"student.backbone.network has {', '.join(settings)}: set it to the teacher's settings"
        )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile each part: they are called one by one, not through `forward`."""
        for part in self.children():
            part.compile(*args, **kwargs)


def _update_config(config: CircuitConfig) -> UNetConfig:
    """Settings of the update's U-Net: attention at the state's heights, and a second time."""
    shrink = config.state.shrink // config.network.patch
    heights = tuple(height // shrink for height in config.network.attention)
    return replace(config.network, patch=1, attention=heights, two_times=True)
