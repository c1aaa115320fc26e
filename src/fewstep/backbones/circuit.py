"""A recurrent network in a latent space, after Denoising Circuits: encode, update, read out.

    latent     z_t = norm(adapt(trunk(x_t, t)))                         `encode`, Rin
    update     z_s = norm(z_t + step·sigmoid(e(t, s))·residual(z_t, t, s))   `advance`, R
    read-outs  output = Rout(z_t, t),   x0 = X0out(z_t, t)              `read`, `image`

`norm` is a group normalisation without parameters: at every time the latent has mean 0 and variance
1 in each group, so that a chain of updates can neither vanish nor explode, and it is nearly a sum
of small residuals. Asked for an output the network encodes and reads: an ordinary backbone.

The trunks are two copies of one U-Net. They are trained whole, or, with `lora`, taken from a
pretrained network (`start`) whose attention is adapted at low rank (Hu et al. 2021,
arXiv:2106.09685), whose norms and time embedding are trained, and whose other weights are kept.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from fewstep.backbones.base import Backbone
from fewstep.backbones.blocks import Attention, Images, viewed
from fewstep.backbones.embedding import LevelEmbedding, Sinusoid
from fewstep.backbones.unet import UNet, UNetConfig
from fewstep.condition import Condition
from fewstep.errors import InputError

Latent = Float[Tensor, "b latent _ _"]
Level = Float[Tensor, " b"]
ORIGINAL = "parametrizations.weight.original"
NEW = ("time_embedding_s", "class_embedding")
"""What a pretrained network may lack: it is trained, whatever is kept of the rest."""


@dataclass(frozen=True)
class LatentConfig:
    """The latent of a circuit; those who learn its sums are told the same."""

    channels: int = 128
    """Channels of the latent."""
    shrink: int = 1
    """Its height and width are the images', divided by this."""
    groups: int = 32
    """Groups of its normalisation, which has no parameters."""

    def __post_init__(self) -> None:
        whole = self.channels >= 1 and self.groups >= 1 and self.channels % self.groups == 0
        if not whole or self.shrink not in (1, 2, 4, 8, 16):
            raise InputError(
                f"a latent of {self.channels} channels in {self.groups} groups, shrunk by "
                f"{self.shrink}: groups must divide channels; shrink is 1, 2, 4, 8 or 16"
            )

    def shape(self, image: tuple[int, ...]) -> tuple[int, int, int]:
        """(channels, height, width) of the latent of an image.  Raises: InputError."""
        if len(image) != 3 or image[1] % self.shrink or image[2] % self.shrink:
            raise InputError(f"a latent shrunk by {self.shrink} does not fit images of {image}")
        return self.channels, image[1] // self.shrink, image[2] // self.shrink

    def told(self, network: Sinusoid) -> Sinusoid:
        """How what is around a network is told the level: as the network, at the latent's width."""
        return replace(network, width=max(self.channels + self.channels % 2, 16))

    def normalise(self, z: Latent) -> Latent:
        """Mean 0 and variance 1 in each group of channels of each row."""
        # an encoder's first latents are small, and normalising twice should change nothing
        return functional.group_norm(viewed(z), self.groups, eps=1e-8)


@dataclass(frozen=True)
class CircuitConfig:
    """The defaults are the published ones, on the U-Net of google/ddpm-cifar10-32."""

    name: Literal["circuit"] = "circuit"
    network: UNetConfig = field(default_factory=UNetConfig)
    """The U-Net that encoder and update have a copy of each."""
    latent: LatentConfig = field(default_factory=LatentConfig)
    """Channels, shrink and groups of the latent."""
    blocks: int = 2
    """Residual blocks of an adapter of the update; encoder and read-outs have twice as many."""
    step: float = 0.3
    """A residual's largest factor; at first it is half of it."""
    lora: int = 0
    """Rank at which a pretrained U-Net's attention is adapted; 0: all weights are trained."""
    lora_alpha: float = 16.0
    """The adaptation's weight is this over the rank."""

    def __post_init__(self) -> None:
        if min(self.lora, self.blocks) < 0 or self.step <= 0:
            raise InputError(
                f"student.backbone has lora {self.lora}, blocks {self.blocks}, step {self.step}: "
                "lora and blocks must be at least 0, step above 0"
            )


class CircuitNet(Backbone):
    """Encoder, update and two read-outs.

    At first the update changes nothing, since its last layer is zero, and the read-outs say nearly
    nothing.
    """

    def __init__(self, config: CircuitConfig, *, shape: tuple[int, ...], classes: int = 0) -> None:
        super().__init__()
        self.config, self.shape, self.classes = config, shape, classes
        self.level_scale = config.network.level_scale
        width, latent = config.network.channels[0], config.latent.channels
        self.encoder = UNet(config.network, shape=shape, classes=classes)
        self.encoder.conv_out = nn.Identity()
        self.told = told = config.latent.told(self.encoder.sinusoid)
        self.update = UNet(_within(config), shape=(width, *config.latent.shape(shape)[1:]),
                           classes=classes)  # fmt: skip
        self.update.conv_in = self.update.conv_out = nn.Identity()
        shrink, blocks = config.latent.shrink, config.blocks
        self.encoded = Adapter(width, latent, latent, told, 2 * blocks, shrink=shrink)
        self.entering = Adapter(latent, width, width, told, blocks)
        self.leaving = Adapter(width + latent, width + latent, latent, told, blocks)
        nn.init.zeros_(self.leaving.last.weight)
        nn.init.zeros_(self.leaving.last.bias)  # pyright: ignore[reportArgumentType]
        self.gate = Gate(told)
        self.output = Readout(latent, shape[0], told, 2 * blocks, grow=shrink)
        self.picture = Readout(latent, shape[0], told, 2 * blocks, grow=shrink)
        if config.lora:
            for trunk, trained in ((self.encoder, (*NEW, "conv_in")), (self.update, NEW)):
                adapt(trunk, config.lora, config.lora_alpha, trained)

    def forward(
        self,
        x: Images,
        level: Level,
        *,
        level_s: Level | None = None,
        cond: Condition | None = None,
    ) -> Images:
        if level_s is not None:
            raise ValueError("level_s came; a circuit's output knows one time")
        return self.read(self.encode(x, level, cond), level)

    def features(
        self, x: Images, level: Level, *, cond: Condition | None = None
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Those of the encoder's U-Net, then the latent."""
        return [*self.encoder.features(x, level, cond=cond), self.encode(x, level, cond)]

    @property
    def trunks(self) -> tuple[nn.Module, ...]:
        return self.encoder, self.update

    def encode(self, x: Images, level: Level, cond: Condition | None = None) -> Latent:
        """Rin: the latent of an image at `level`."""
        seen = self.encoder(x, level, cond=cond)
        return self.config.latent.normalise(self.encoded(seen, level))

    def advance(
        self, z: Latent, level: Level, level_s: Level, cond: Condition | None = None
    ) -> Latent:
        """R: the latent at `level_s`, from the one at `level`, without a look at an image."""
        inner = self.update(self.entering(z, level), level, level_s=level_s, cond=cond)
        residual = self.leaving(torch.cat([inner, z], dim=1), level)
        factor = self.config.step * torch.sigmoid(self.gate(level, level_s))
        return self.config.latent.normalise(z + factor[:, None, None, None] * residual)

    def read(self, z: Latent, level: Level) -> Images:
        """Rout: the raw output, in the parametrization's terms."""
        return self.output(z, level)

    def image(self, z: Latent, level: Level) -> Images:
        """X0out: the image."""
        return self.picture(z, level)

    def follow_encoder(self) -> None:
        """Give the update's trunk the encoder's weights, those that it has: a start in training."""
        self.update.load_state_dict(self.encoder.state_dict(), strict=False)

    def start(self, teacher: Backbone | None) -> None:
        """With `lora`, take both trunks' weights from a pretrained U-Net."""
        if not self.config.lora:
            return
        if not isinstance(teacher, UNet):
            told = f"it is a {teacher.config.name}" if teacher else "there is none"
            raise InputError(f"student.backbone.lora adapts a teacher's U-Net ([teacher]): {told}")
        mine, theirs = self.config.network, teacher.config
        if replace(theirs, dropout=mine.dropout, two_times=False) != mine:
            raise InputError(
                "student.backbone.network must be the teacher's, whose weights lora keeps: "
                f"{mine} is not {theirs}"
            )
        given = teacher.state_dict()
        for trunk in (self.encoder, self.update):
            state = trunk.state_dict()
            plain = {name: name.replace(ORIGINAL, "weight") for name in state}
            found = {name: given[key] for name, key in plain.items() if key in given}
            trunk.load_state_dict({**state, **found})

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Of its parts: it is asked for a latent, an update or an image, not as a whole."""
        for part in self.children():
            part.compile(*args, **kwargs)


def _within(config: CircuitConfig) -> UNetConfig:
    """The update's U-Net: on the latent's height, told where it goes."""
    shrink = config.latent.shrink
    heights = tuple(height // shrink for height in config.network.attention)
    return replace(config.network, attention=heights, two_times=True)


class Block(nn.Module):
    """Two convolutions beside a shortcut, shifted and scaled by the level; at first the shortcut.

    Its sinusoid goes as fast as the network's: the published one turns once over all levels.
    """

    def __init__(self, width: int, told: Sinusoid) -> None:
        super().__init__()
        self.told = told
        self.groups = groups_of(width)
        self.level = LevelEmbedding(told.width, 4 * width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        for module in (self.level.linear_2, self.conv2):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Images, level: Level) -> Images:
        film = self.level(self.told(level))[:, :, None, None].chunk(4, dim=1)
        hidden = self.conv1(functional.silu(self._shifted(x, *film[:2])))
        return x + self.conv2(functional.silu(self._shifted(hidden, *film[2:])))

    def _shifted(self, x: Images, scale: Tensor, shift: Tensor) -> Images:
        return functional.group_norm(viewed(x), self.groups) * (1 + 0.1 * scale) + shift


class Adapter(nn.Module):
    """From one width to another, by way of blocks that know the level."""

    def __init__(
        self, width_in: int, width: int, width_out: int, told: Sinusoid, blocks: int, *,
        shrink: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.fold = nn.PixelUnshuffle(shrink)
        self.first = nn.Conv2d(width_in * shrink**2, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width, told) for _ in range(blocks))
        self.last = nn.Conv2d(width, width_out, 3, padding=1)

    def forward(self, x: Images, level: Level) -> Images:
        x = self.first(self.fold(x))
        for block in self.blocks:
            x = block(x, level)
        return self.last(functional.silu(x))


class Readout(nn.Module):
    """From a latent to an image: blocks that know the level, and the latent past them."""

    def __init__(
        self, latent: int, channels: int, told: Sinusoid, blocks: int, *, grow: int = 1
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(latent, latent, 3, padding=1)
        self.past = nn.Conv2d(latent, latent, 1)
        self.blocks = nn.ModuleList(Block(latent, told) for _ in range(blocks))
        self.last = nn.Conv2d(latent, channels * grow**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(grow)
        nn.init.zeros_(self.past.weight)
        nn.init.xavier_uniform_(self.last.weight, gain=1e-5)
        for layer in (self.past, self.last):
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, z: Latent, level: Level) -> Images:
        x = self.first(z)
        for block in self.blocks:
            x = block(x, level)
        return self.unfold(self.last(functional.silu(x + self.past(z))))


class Gate(nn.Module):
    """How much of a residual is taken, from where it starts and how far it goes: a number a row."""

    def __init__(self, told: Sinusoid) -> None:
        super().__init__()
        self.told = told
        self.first = nn.Linear(2 * told.width, told.width)
        self.last = nn.Linear(told.width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, level: Level, level_s: Level) -> Level:
        told = torch.cat([self.told(level), self.told(level - level_s)], dim=1)
        hidden = self.first(told.to(self.first.weight.dtype))
        return self.last(functional.silu(hidden)).flatten()


def groups_of(width: int) -> int:
    """32, as published, or fewer: at least four channels share a norm, or nothing of them is left
    where they are constant."""
    return max(n for n in range(1, max(min(width // 4, 32), 1) + 1) if width % n == 0)


class LowRank(nn.Module):
    """A weight and a learned product of two thin matrices beside it; at first the weight alone."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scale * self.up @ self.down


def adapt(net: UNet, rank: int, alpha: float, trained: tuple[str, ...]) -> None:
    """Keep a U-Net's weights, in place, but for low-rank changes of its attention, its norms, its
    time embedding, and `trained`. What is kept becomes a buffer: no optimiser finds it.
    """
    for module in [m for m in net.modules() if isinstance(m, Attention)]:
        for layer in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
            weight = layer.get_parameter("weight")
            parametrize.register_parametrization(layer, "weight", LowRank(weight, rank, alpha))
    moving = (*trained, "time_embedding")
    for path, module in [*net.named_modules()]:
        if path.startswith(moving) or isinstance(module, nn.GroupNorm | LowRank):
            continue
        freeze(module, deep=False)


def freeze(module: nn.Module, *, deep: bool = True) -> None:
    """Turn parameters into buffers, in place: kept, saved and moved, and never trained."""
    for inner in module.modules() if deep else [module]:
        for name, parameter in [*inner.named_parameters(recurse=False)]:
            delattr(inner, name)
            inner.register_buffer(name, parameter.detach().clone())
