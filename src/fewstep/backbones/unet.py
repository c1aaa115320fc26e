"""The U-Net of DDPM, interchangeable with diffusers' `UNet2DModel`.

Ho et al. 2020, arXiv:2006.11239. Each of the two loads the other's weights strictly, and the
outputs agree to rounding. Unlike diffusers' network, it can be exported with a dynamic batch size
and has forward-mode derivatives. On CPUs it computes in the channels-last format, whatever the
format of the images.

Gradient penalties need second derivatives, which the fused attention kernels do not have: call the
network under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.attention import Images, channels_last_on_cpu
from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.blocks import (
    BlockOptions,
    DownBlock,
    Embedding,
    MidBlock,
    Resnet,
    UpBlock,
    check_attention,
    image_heights,
    initialise,
)
from fewstep.backbones.embedding import LevelEmbedding, Sinusoid, augment_embedding
from fewstep.backbones.text import TextContext, TextTransformer, embed_with_prompts
from fewstep.condition import Condition, TextInput
from fewstep.errors import InputError
from fewstep.ranges import (
    NONEMPTY,
    Channels,
    Depth,
    EvenWidth,
    NonNegative,
    Pixels,
    Positive,
    ProbabilityBelowOne,
)


@dataclass(frozen=True)
class UNetConfig(BackboneConfig):
    """Settings of a `UNet`.

    The defaults are those of google/ddpm-cifar10-32: 35,746,307 parameters at (3, 32, 32).
    """

    channels: Annotated[tuple[Channels, ...], NONEMPTY] = (128, 256, 256, 256)
    """Channels at each size. The first size is the image's, and each next one is half as large."""
    patch: Literal[1, 2, 4] = 1
    """Side of the squares of pixels that the first layer takes as one, with p² times the channels;
    the last layer divides them again. 2 is about three times faster at equal channels. Heights in
    other settings are those of squares."""
    layers: Depth = 2
    """Residual layers per size in the encoder; the decoder has one more."""
    attention: tuple[Pixels, ...] = (16,)
    """Image heights in pixels at which the layers have attention, such as (16, 8)."""
    cross_attention: tuple[Pixels, ...] = ()
    """Image heights in pixels at which the layers have attention to the tokens of a prompt, such as
    (16, 8). Only networks with text have it; all of them add the whole prompt to the embedding."""
    text_width: EvenWidth = 128
    """Width of the transformer that reads prompts."""
    text_layers: Depth = 2
    """Number of layers of the transformer that reads prompts."""
    middle_attention: bool = True
    """Whether the bottleneck has attention."""
    head_dim: Channels | None = None
    """Channels per attention head; None means one head, as in DDPM."""
    groups: Channels = 32
    """Groups of the normalisation; must divide every number of channels."""
    dropout: ProbabilityBelowOne = 0.0
    """Dropout probability in each layer during training, at least 0 and below 1."""
    two_times: bool = False
    """Whether there is an input for the destination, for flow maps; initially it has no effect."""
    augmented: bool = False
    """Whether there is an input for labels of augmentation; `data.augment` sets it."""
    level_scale: Positive = 250.0
    """Factor for logarithmic levels (EDM's), so that they span the range of the embedding."""
    norm_eps: NonNegative = 1e-6
    """Added to the variance in normalisations."""
    downsample_padding: Literal[0, 1] = 0
    """Padding before a size is halved: 0 pads one row and column at the end, as in DDPM; 1 pads all
    sides."""
    flip_sin_to_cos: bool = False
    """Whether cosines precede sines in the embedding of the level: false in DDPM, true in later
    networks."""
    freq_shift: NonNegative = 1.0
    """Spacing of the embedding's frequencies: 1 in DDPM, 0 in later networks."""
    pace: Positive | None = None
    """Factor of the frequencies in the embedding of the level. Small values, such as 0.03, keep the
    network's derivative along time small, as MeanFlow and sCM need. None is 0.004 for logarithmic
    levels (EDM's) and 1 for others."""

    def build(
        self, *, shape: tuple[int, ...], classes: int = 0, text: TextInput | None = None
    ) -> "UNet":
        """Build a network for images of `shape` in [-1, 1], and prompts if there is `text`.

        Initial weights come from torch's default generator.

        Raises: InputError if the settings do not fit each other or `shape`.
        """
        return UNet(self, shape=shape, classes=classes, text=text)


class UNet(Backbone):
    """Convolutional encoder and decoder with skip connections.

    It is initialised as in DDPM, with Xavier-uniform weights and zero biases. The last layer of
    every residual branch and of the network is zero. Initially, each block therefore returns its
    shortcut, and the output is zero.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        shape: tuple[int, ...],
        classes: int = 0,
        text: TextInput | None = None,
    ) -> None:
        super().__init__()
        heights = encoder_heights(config, shape)
        self.config, self.shape, self.classes, self.text = config, shape, classes, text
        self.level_scale = config.level_scale
        widths = config.channels
        embedding = 4 * widths[0]
        self.sinusoid = Sinusoid(widths[0], config.freq_shift, config.flip_sin_to_cos, config.pace)
        self.time_embedding = LevelEmbedding(widths[0], embedding)
        self.time_embedding_s = LevelEmbedding(widths[0], embedding) if config.two_times else None
        self.class_embedding = nn.Embedding(classes + 1, embedding) if classes else None
        self.augment_embedding = augment_embedding(embedding) if config.augmented else None
        self.text_transformer: TextTransformer | None = None
        self.text_proj: nn.Linear | None = None
        if text is not None:
            self.text_transformer = TextTransformer(text, config.text_width, config.text_layers)
            self.text_proj = nn.Linear(config.text_width, embedding)
        options = BlockOptions(
            embedding,
            groups=config.groups,
            eps=config.norm_eps,
            dropout=config.dropout,
            head_dim=config.head_dim,
            padding=config.downsample_padding,
            text_width=config.text_width,
        )
        pixels = shape[0] * config.patch**2
        self.conv_in: nn.Module = nn.Conv2d(pixels, widths[0], 3, padding=1)
        attends = [height in config.attention for height in heights]
        reads = [text is not None and height in config.cross_attention for height in heights]
        self.down_blocks = down_blocks(widths, config.layers, attends, options, reads)
        self.mid_block = MidBlock(
            widths[-1], options, attends=config.middle_attention, reads=reads[-1]
        )
        self.up_blocks = up_blocks(widths, config.layers, attends, options, reads)
        self.conv_norm_out: nn.Module = options.norm(widths[0])
        self.conv_out: nn.Module = nn.Conv2d(widths[0], pixels, 3, padding=1)
        self.unfold: nn.Module = (
            nn.PixelShuffle(config.patch) if config.patch > 1 else nn.Identity()
        )
        initialise(self, Resnet)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        *,
        level_s: Float[Tensor, " b"] | None = None,
        cond: Condition | None = None,
    ) -> Float[Tensor, "b _ _ _"]:  # smaller than x without `unfold`, as in a circuit
        *_, hidden = self._decode(x, *embed_with_prompts(self, x, level, level_s, cond))
        output = self.conv_out(functional.silu(self.conv_norm_out(hidden)))
        return self.unfold(output).contiguous()

    def decoder_features(
        self, x: Float[Tensor, "b c h w"], level: Float[Tensor, " b"], cond: Condition | None
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """The decoder's last activations at each size, smallest first.

        Their channels are `decoder_widths`. Each height is twice the one before, and the last is
        that of `x`, divided by `config.patch`.
        """
        decoded = self._decode(x, *embed_with_prompts(self, x, level, None, cond))
        last = {output.shape[-1]: output for output in decoded}
        return [*last.values()]

    @property
    def decoder_widths(self) -> list[int]:
        """Channels of `decoder_features`."""
        return [*self.config.channels[:0:-1][:-1], self.config.channels[0]]

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
        emb, context = embed_with_prompts(self, x, level, None, cond)
        _, *blocks = self._encode(x, emb, context)
        last = [outputs[self.config.layers - 1] for outputs in blocks]
        return [*last, self.mid_block(blocks[-1][-1], emb, context)]

    def _decode(self, x: Images, emb: Embedding, context: TextContext | None) -> list[Images]:
        """The output of each block of the decoder."""
        skips = list(chain.from_iterable(self._encode(x, emb, context)))
        outputs = [self.mid_block(skips[-1], emb, context)]
        for block in self.up_blocks:
            outputs.append(block(outputs[-1], skips, emb, context))
        return outputs[1:]

    def _encode(self, x: Images, emb: Embedding, context: TextContext | None) -> list[list[Images]]:
        """The output of the first convolution, then the outputs of each block's layers."""
        if self.config.patch > 1:
            x = functional.pixel_unshuffle(x, self.config.patch)
        outputs = [[channels_last_on_cpu(self.conv_in(x))]]
        for block in self.down_blocks:
            outputs.append(block(outputs[-1][-1], emb, context))
        return outputs


def down_blocks(
    widths: tuple[int, ...],
    layers: int,
    attends: list[bool],
    options: BlockOptions,
    reads: list[bool],
) -> nn.ModuleList:
    """Encoder blocks, one per size."""
    blocks = nn.ModuleList()
    for i, width in enumerate(widths):
        widths_in = [widths[max(i - 1, 0)]] + [width] * (layers - 1)
        last = i == len(widths) - 1
        blocks.append(
            DownBlock(widths_in, width, options, attends=attends[i], last=last, reads=reads[i])
        )
    return blocks


def up_blocks(
    widths: tuple[int, ...],
    layers: int,
    attends: list[bool],
    options: BlockOptions,
    reads: list[bool],
) -> nn.ModuleList:
    """Decoder blocks; the input of each layer is concatenated with an output of the encoder."""
    blocks = nn.ModuleList()
    below = widths[-1]
    for i in reversed(range(len(widths))):
        skips = [widths[i]] * layers + [widths[max(i - 1, 0)]]
        inputs = [below] + [widths[i]] * layers
        widths_in = [a + b for a, b in zip(inputs, skips, strict=True)]
        blocks.append(
            UpBlock(widths_in, widths[i], options, attends=attends[i], last=i == 0, reads=reads[i])
        )
        below = widths[i]
    return blocks


def encoder_heights(config: UNetConfig, shape: tuple[int, ...]) -> list[int]:
    """Image heights in the encoder, largest first.

    Raises: InputError if the network cannot be built.
    """
    if len(shape) == 3 and any(side % config.patch for side in shape[1:]):
        raise InputError(
            f"patch = {config.patch} does not divide {shape[1]}x{shape[2]} pixels: set patch = 1"
        )
    heights = image_heights(config.channels, (*shape[:1], *(n // config.patch for n in shape[1:])))
    check_attention("attention", config.attention, heights)
    check_attention("cross_attention", config.cross_attention, heights)
    for width in config.channels:
        if width % config.groups or width % 2:
            raise InputError(
                f"groups = {config.groups} does not fit channels = {list(config.channels)}: every"
                " number of channels must be even and a multiple of groups; their greatest common"
                f" divisor is {math.gcd(*config.channels)}"
            )
    attends = [
        width
        for height, width in zip(heights, config.channels, strict=True)
        if height in config.attention or (config.middle_attention and height == heights[-1])
    ]
    if config.head_dim is not None and any(width % config.head_dim for width in attends):
        raise InputError(
            f"head_dim = {config.head_dim} must divide every number of channels that attention "
            f"has, {attends}; leave it out for one head"
        )
    return heights
