"""The U-Nets DDPM++, NCSN++ and ADM in one, as in EDM: they differ in the settings of their blocks.

Song et al. 2021, arXiv:2011.13456 (DDPM++, NCSN++); Dhariwal and Nichol 2021, arXiv:2105.05233
(ADM, guided-diffusion); Karras et al. 2022, arXiv:2206.00364, appendix F.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.attention import Images, channels_last_on_cpu
from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.blocks import (
    Downsample,
    Embedding,
    Upsample,
    check_attention,
    image_heights,
    initialise,
)
from fewstep.backbones.embedding import Fourier, LevelEmbedding, Sinusoid, augment_embedding, embed
from fewstep.backbones.residual_blocks import ImageSkip, ResidualBlock, ResidualOptions
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.ranges import (
    NONEMPTY,
    Channels,
    Depth,
    EvenWidth,
    Integer,
    NonNegative,
    Pixels,
    Positive,
    ProbabilityBelowOne,
)


@dataclass(frozen=True)
class EDMUNetConfig(BackboneConfig):
    """Settings of an `EDMUNet`. The defaults are EDM's DDPM++ for CIFAR-10."""

    width: Channels = 128
    """Channels of the first convolution."""
    channels: Annotated[tuple[Channels, ...], NONEMPTY] = (256, 256, 256)
    """Channels at each size. The first size is the image's, and each next one is half as large."""
    layers: Depth = 4
    """Residual layers per size in the encoder; the decoder has one more."""
    attention: tuple[Pixels, ...] = (16,)
    """Image heights in pixels at which the layers have attention, such as (16, 8)."""
    decoder_attention: Literal["all", "last"] = "last"
    """Which of the decoder's layers at these heights have attention: in ADM all, else the last."""
    heads: Channels | None = None
    """Attention heads, alternatively to `head_dim`; None for both means one head."""
    head_dim: Channels | None = None
    """Channels per attention head."""
    level_width: EvenWidth = 128
    """Width of the level's features; must be even."""
    embedding: Channels = 512
    """Width of the embedding that the layers receive."""
    fourier: bool = False
    """Whether the level's features have random frequencies, as in NCSN++."""
    cosine_first: bool = False
    """Whether cosines precede sines in the level's features, as in ADM."""
    freq_shift: NonNegative = 1.0
    """Spacing of the features' frequencies: 1 in DDPM++, 0 in ADM."""
    class_first: bool = True
    """Whether the class is added to the level's features; otherwise to their embedding, as in
    ADM."""
    adaptive: bool = False
    """Whether the embedding sets scale and shift of a layer, as in ADM, or the shift alone."""
    residual_scale: Positive = math.sqrt(0.5)
    """Factor of the sum of a layer's input and output; 1 in ADM."""
    resampling: Literal["layer", "convolution"] = "layer"
    """What changes the size: a residual layer, or a convolution alone."""
    taps: Annotated[tuple[Integer, ...], NONEMPTY] = (1, 1)
    """Filter with which layers change the size; (1, 3, 3, 1) in NCSN++."""
    shortcut: bool = True
    """Whether the shortcut of such a layer has a convolution; not in ADM."""
    image_skips: bool = False
    """Whether each size of the encoder also receives the convolved image, as in NCSN++."""
    groups: Channels = 32
    """Largest number of groups of a normalisation."""
    min_group: Channels = 4
    """Least channels per group of a normalisation."""
    norm_eps: NonNegative = 1e-6
    """Added to the variance in normalisations."""
    dropout: ProbabilityBelowOne = 0.0
    """Dropout probability in each layer during training, at least 0 and below 1."""
    two_times: bool = False
    """Whether there is an input for the destination, for flow maps; initially it has no effect."""
    augmented: bool = False
    """Whether there is an input for labels of augmentation; `data.augment` sets it."""
    level_scale: Positive = 250.0
    """Factor for logarithmic levels (EDM's); 1 in EDM, 1000 in consistency models."""
    pace: Positive | None = None
    """Factor of the frequencies in the level's features. None is 0.004 for logarithmic levels
    (EDM's) and 1 for others."""

    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "EDMUNet":
        """Build a network for images of `shape` in [-1, 1].

        Initial weights come from torch's default generator.

        Raises: InputError if the settings do not fit each other or `shape`.
        """
        return EDMUNet(self, shape=shape, classes=classes)

    def options(self, width: int) -> ResidualOptions:
        """Settings of blocks with `width` channels."""
        return ResidualOptions(
            self.embedding,
            groups=self.groups,
            eps=self.norm_eps,
            dropout=self.dropout,
            head_dim=self.head_dim if self.heads is None else width // self.heads,
            padding=1,
            min_group=self.min_group,
            adaptive=self.adaptive,
            residual_scale=self.residual_scale,
            taps=self.taps,
            shortcut=self.shortcut,
        )


class DownLevel(nn.Module):
    """A size of the encoder: a change of size except at the first, then its layers."""

    def __init__(self, width_in: int, index: int, config: EDMUNetConfig, attends: bool) -> None:
        super().__init__()
        width = config.channels[index]
        options = config.options(width)
        self.resample: nn.Module | None = None
        self.image_skip: nn.Module | None = None
        if index > 0 and config.resampling == "layer":
            self.resample = ResidualBlock(width_in, width_in, options, resize="down")
        elif index > 0:
            self.resample = Downsample(width_in, options)
        self.blocks = nn.ModuleList(
            ResidualBlock(width if j else width_in, width, options, attends=attends)
            for j in range(config.layers)
        )

    def forward(self, x: Images, image: Images, emb: Embedding) -> tuple[list[Images], Images]:
        """The outputs of the layers, and the convolved image, which `image_skip` adds to them."""
        outputs: list[Tensor] = []
        if self.resample is not None:
            x = _apply(self.resample, x, emb)
            if self.image_skip is not None:
                x = image = (x + self.image_skip(image)) * math.sqrt(0.5)
            outputs.append(x)
        for block in self.blocks:
            x = block(x, emb)
            outputs.append(x)
        return outputs, image


class UpLevel(nn.Module):
    """A size of the decoder: layers with skip connections, then a change of size unless last."""

    def __init__(
        self, widths_in: list[int], index: int, config: EDMUNetConfig, attends: bool
    ) -> None:
        super().__init__()
        width = config.channels[index]
        options, last = config.options(width), len(widths_in) - 1
        everywhere = config.decoder_attention == "all"
        self.blocks = nn.ModuleList(
            ResidualBlock(width_in, width, options, attends=attends and (everywhere or j == last))
            for j, width_in in enumerate(widths_in)
        )
        self.resample: nn.Module | None = None
        if index > 0 and config.resampling == "layer":
            self.resample = ResidualBlock(width, width, options, resize="up")
        elif index > 0:
            self.resample = Upsample(width)

    def forward(self, x: Images, skips: list[Images], emb: Embedding) -> Images:
        for block in self.blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb)
        return x if self.resample is None else _apply(self.resample, x, emb)


def _apply(module: nn.Module, x: Images, emb: Embedding) -> Images:
    return module(x, emb) if isinstance(module, ResidualBlock) else module(x)


class EDMUNet(Backbone):
    """Convolutional encoder and decoder with skip connections.

    Weights are initialised as Xavier-uniform, with zero biases. The last layer of every residual
    branch and of the network is zero.
    """

    def __init__(self, config: EDMUNetConfig, *, shape: tuple[int, ...], classes: int = 0) -> None:
        super().__init__()
        heights = _encoder_heights(config, shape)
        self.config, self.shape, self.classes = config, shape, classes
        self.level_scale = config.level_scale
        width, channels = config.level_width, config.channels
        self.sinusoid = (
            Fourier(width, config.pace)
            if config.fourier
            else Sinusoid(width, config.freq_shift, config.cosine_first, config.pace)
        )
        self.time_embedding = LevelEmbedding(width, config.embedding)
        self.time_embedding_s = (
            LevelEmbedding(width, config.embedding) if config.two_times else None
        )
        class_width = width if config.class_first else config.embedding
        self.class_embedding = nn.Embedding(classes + 1, class_width) if classes else None
        self.augment_embedding = augment_embedding(width) if config.augmented else None
        self.conv_in = nn.Conv2d(shape[0], config.width, 3, padding=1)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        skips, below, image = [config.width], config.width, shape[0]
        for index, height in enumerate(heights):
            level = DownLevel(below, index, config, height in config.attention)
            if index > 0:
                skips.append(below)
                if config.image_skips:
                    level.image_skip = ImageSkip(image, below, config.taps)
                    image = below
            below = channels[index]
            skips += [below] * config.layers
            self.downs.append(level)
        options = config.options(below)
        self.middle = nn.ModuleList(
            ResidualBlock(below, below, options, attends=attends) for attends in (True, False)
        )
        for index in reversed(range(len(channels))):
            inputs = [below] + [channels[index]] * config.layers
            widths = [each + skips.pop() for each in inputs]
            self.ups.append(UpLevel(widths, index, config, heights[index] in config.attention))
            below = channels[index]
        self.norm_out = config.options(below).norm(below)
        self.conv_out = nn.Conv2d(below, shape[0], 3, padding=1)
        initialise(self, ResidualBlock)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        *,
        level_s: Float[Tensor, " b"] | None = None,
        cond: Condition | None = None,
    ) -> Float[Tensor, "b _ h w"]:
        emb = self._embedding(level, level_s, cond)
        skips = [output for outputs in self._encode(x, emb) for output in outputs]
        hidden = self._bottleneck(skips[-1], emb)
        for up in self.ups:
            hidden = up(hidden, skips, emb)
        return self.conv_out(functional.silu(self.norm_out(hidden))).contiguous()

    def features(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        *,
        cond: Condition | None = None,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """The encoder's last activations at each size, largest first, then the bottleneck's.

        Their channels are `config.channels`, with the last number repeated for the bottleneck.
        """
        emb = self._embedding(level, None, cond)
        _, *levels = self._encode(x, emb)
        last = [outputs[-1] for outputs in levels]
        return [*last, self._bottleneck(last[-1], emb)]

    def _embedding(
        self, level: Tensor, level_s: Tensor | None, cond: Condition | None
    ) -> Embedding:
        class_first = self.config.class_first
        emb = embed(self, level, level_s, cond, class_first=class_first, augment_first=True)
        return functional.silu(emb)

    def _encode(self, x: Images, emb: Embedding) -> list[list[Images]]:
        """The output of the first convolution, then the outputs of each size's layers."""
        image = channels_last_on_cpu(x)
        levels = [[self.conv_in(image)]]
        for down in self.downs:
            outputs, image = down(levels[-1][-1], image, emb)
            levels.append(outputs)
        return levels

    def _bottleneck(self, x: Images, emb: Embedding) -> Images:
        for block in self.middle:
            x = block(x, emb)
        return x


def _encoder_heights(config: EDMUNetConfig, shape: tuple[int, ...]) -> list[int]:
    """Image heights in the encoder, largest first.  Raises: InputError if it cannot be built."""
    heights = image_heights(config.channels, shape)
    check_attention("attention", config.attention, heights)
    for width in {config.width, *config.channels}:
        groups = min(config.groups, width // config.min_group)
        if groups == 0 or width % groups:
            raise InputError(
                f"{width} channels cannot be split into {groups} groups: change groups or channels"
            )
    for height, width in zip(heights, config.channels, strict=True):
        size = config.options(width).head_dim
        attends = height in config.attention or height == heights[-1]
        if attends and size is not None and (size == 0 or width % size):
            raise InputError(
                f"the attention of {width} channels cannot have heads of {size} channels: change "
                "heads or head_dim"
            )
    return heights
