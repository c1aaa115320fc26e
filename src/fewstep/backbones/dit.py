"""The diffusion transformer: self-attention over patches of pixels, modulated by the embedding.

Peebles & Xie 2022, arXiv:2212.09748, in the variant adaLN-zero. Prompts are read as in PixArt-α,
Chen et al. 2023, arXiv:2310.00426: by cross-attention in every block. The network can be exported
with a dynamic batch size and has forward-mode derivatives, like the U-Net.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.attention import attention, join_heads, split_heads
from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.embedding import LevelEmbedding, Sinusoid, augment_embedding
from fewstep.backbones.text import TextContext, TextTransformer, embed_with_prompts
from fewstep.condition import Condition, TextInput
from fewstep.errors import InputError
from fewstep.ranges import Channels, Depth, EvenWidth, Positive

Sequence = Float[Tensor, "b n width"]
Embedding = Float[Tensor, "b width"]

FREQUENCIES = 256
"""Features of the sinusoid of a level."""
NORM_EPS = 1e-6
PERIOD = 10_000  # longest wavelength / 2π of the positions
MLP_RATIO = 4
"""Hidden features of a block's two linear layers, per feature."""


@dataclass(frozen=True)
class DiTConfig(BackboneConfig):
    """Settings of a `DiT`.

    The defaults have 4.2 million parameters for 32×32 pixels. DiT-S/2 of the paper has width 384,
    depth 12 and head_dim 64.
    """

    patch: Literal[1, 2, 4, 8] = 2
    """Side of the squares of pixels that become one token. Twice the side is four to sixteen times
    faster, and less precise."""
    width: EvenWidth = 192
    """Features of a token; a multiple of 4."""
    depth: Depth = 6
    """Number of blocks."""
    head_dim: Channels = 32
    """Features per attention head; must divide `width`."""
    cross_attention: bool = True
    """Whether blocks have attention to the tokens of a prompt. Only networks with text have it; all
    of them add the whole prompt to the embedding."""
    text_width: EvenWidth = 128
    """Width of the transformer that reads prompts."""
    text_layers: Depth = 2
    """Number of layers of the transformer that reads prompts."""
    two_times: bool = False
    """Whether there is an input for the destination, for flow maps; initially it has no effect."""
    augmented: bool = False
    """Whether there is an input for labels of augmentation; `data.augment` sets it."""
    level_scale: Positive = 250.0
    """Factor for logarithmic levels (EDM's), so that they span the range of the embedding."""
    pace: Positive | None = None
    """Factor of the frequencies in the embedding of the level. Small values, such as 0.03, keep the
    network's derivative along time small, as MeanFlow and sCM need. None is 0.004 for logarithmic
    levels (EDM's) and 1 for others."""

    def build(
        self, *, shape: tuple[int, ...], classes: int = 0, text: TextInput | None = None
    ) -> "DiT":
        """Build a network for images of `shape` in [-1, 1], and prompts if there is `text`.

        Initial weights come from torch's default generator.

        Raises: InputError if the settings do not fit each other or `shape`.
        """
        return DiT(self, shape=shape, classes=classes, text=text)


class DiT(Backbone):
    """A transformer over patches, all of whose blocks initially return their input.

    It is initialised as in the paper; the output is zero at first.
    """

    def __init__(
        self,
        config: DiTConfig,
        *,
        shape: tuple[int, ...],
        classes: int = 0,
        text: TextInput | None = None,
    ) -> None:
        super().__init__()
        check_settings(config, shape)
        self.config, self.shape, self.classes, self.text = config, shape, classes, text
        self.level_scale = config.level_scale
        width = config.width
        self.sinusoid = Sinusoid(FREQUENCIES, cosine_first=True, pace=config.pace)
        self.time_embedding = LevelEmbedding(FREQUENCIES, width)
        self.time_embedding_s = LevelEmbedding(FREQUENCIES, width) if config.two_times else None
        self.class_embedding = nn.Embedding(classes + 1, width) if classes else None
        self.augment_embedding = augment_embedding(width) if config.augmented else None
        self.text_transformer: TextTransformer | None = None
        self.text_proj: nn.Linear | None = None
        if text is not None:
            self.text_transformer = TextTransformer(text, config.text_width, config.text_layers)
            self.text_proj = nn.Linear(config.text_width, width)
        self.patches = nn.Conv2d(shape[0], width, config.patch, stride=config.patch)
        positions = sinusoidal_positions(shape[1] // config.patch, shape[2] // config.patch, width)
        self.register_buffer("positions", positions, persistent=False)
        text_width = config.text_width if text is not None and config.cross_attention else 0
        self.blocks = nn.ModuleList(
            Block(width, width // config.head_dim, text_width) for _ in range(config.depth)
        )
        self.modulation = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, shape[0] * config.patch**2)
        self._initialise()

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        *,
        level_s: Float[Tensor, " b"] | None = None,
        cond: Condition | None = None,
    ) -> Float[Tensor, "b _ h w"]:
        emb, context = embed_with_prompts(self, x, level, level_s, cond)
        hidden = self._embed(x)
        for block in self.blocks:
            hidden = block(hidden, emb, context)
        shift, scale = self.modulation(emb)[:, None].chunk(2, dim=2)
        output = self._images(self.proj_out(modulate(hidden, shift, scale)))
        return functional.pixel_shuffle(output, self.config.patch).contiguous()

    def features(
        self,
        x: Float[Tensor, "b c h w"],
        level: Float[Tensor, " b"],
        *,
        cond: Condition | None = None,
    ) -> list[Float[Tensor, "b _ _ _"]]:
        """Outputs of the blocks: images with `config.width` channels, one pixel for each patch."""
        emb, context = embed_with_prompts(self, x, level, None, cond)
        outputs = [self._embed(x)]
        for block in self.blocks:
            outputs.append(block(outputs[-1], emb, context))
        return [self._images(output) for output in outputs[1:]]

    def _embed(self, x: Float[Tensor, "b c h w"]) -> Sequence:
        """One token for each patch, row by row."""
        return self.patches(x).flatten(2).mT + self.get_buffer("positions")

    def _images(self, tokens: Float[Tensor, "b n k"]) -> Float[Tensor, "b k _ _"]:
        """One pixel for each token."""
        height, width = (side // self.config.patch for side in self.shape[1:])
        return tokens.mT.unflatten(2, (height, width))

    def _initialise(self) -> None:
        """Set initial weights as in the paper, in place; labels of augmentation are like classes.

        The layers that are zero: those of modulation and of the output, of cross-attention's
        output, and of the embedding of the destination if there is one.
        """
        zero_layers: list[nn.Module] = [self.modulation, self.proj_out]
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Block):
                zero_layers.append(module.modulation)
            elif isinstance(module, CrossAttention):
                zero_layers.append(module.to_out)
            elif isinstance(module, TextTransformer):
                module.initialise()
        for layer in (self.class_embedding, self.augment_embedding):
            if layer is not None:
                nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.time_embedding.linear_1, self.time_embedding.linear_2):
            nn.init.normal_(layer.weight, std=0.02)
        if self.time_embedding_s is not None:
            zero_layers.append(self.time_embedding_s.linear_2)
        for layer in zero_layers:
            for weight in layer.parameters():
                nn.init.zeros_(weight)


class Block(nn.Module):
    """Self-attention, then two linear layers for each token, both as residuals.

    The embedding scales and shifts the input of each branch, and scales its output: three vectors
    a branch, all zero at first. Between the two, tokens read the prompt if there is one.
    """

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.cross_attention = CrossAttention(width, heads, text_width) if text_width else None
        self.linear_1 = nn.Linear(width, MLP_RATIO * width)
        self.linear_2 = nn.Linear(MLP_RATIO * width, width)

    def forward(self, x: Sequence, emb: Embedding, context: TextContext | None) -> Sequence:
        vectors = self.modulation(emb)[:, None].chunk(6, dim=2)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = vectors
        x = x + gate * self._attend(modulate(x, shift, scale))
        if self.cross_attention is not None and context is not None:
            x = x + self.cross_attention(x, context)
        hidden = self.linear_1(modulate(x, shift_mlp, scale_mlp))
        return x + gate_mlp * self.linear_2(functional.gelu(hidden, approximate="tanh"))

    def _attend(self, x: Sequence) -> Sequence:
        q, k, v = (split_heads(part, self.heads) for part in self.to_qkv(x).chunk(3, dim=2))
        return self.to_out(join_heads(attention(q, k, v)))


class CrossAttention(nn.Module):
    """Attention from the tokens of an image to those of a prompt: `W_o softmax(q k^T / sqrt(d)) v`.

    q is of the image, k and v are of a `TextContext`.
    """

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(text_width, width)
        self.to_v = nn.Linear(text_width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Sequence, context: TextContext) -> Sequence:
        q = split_heads(self.to_q(x), self.heads)
        k, v = (split_heads(layer(context.tokens), self.heads) for layer in (self.to_k, self.to_v))
        return self.to_out(join_heads(attention(q, k, v, context.mask)))


def modulate(
    x: Sequence, shift: Float[Tensor, "b 1 width"], scale: Float[Tensor, "b 1 width"]
) -> Sequence:
    """`(1 + scale) norm(x) + shift`, with a layer normalisation that has no weights."""
    return functional.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


def sinusoidal_positions(rows: int, columns: int, width: int) -> Float[Tensor, "n width"]:
    """Fixed embeddings of the places in a grid, row by row: half of them of the column, then of the
    row; each half is sines, then cosines."""
    frequency = torch.exp(
        -math.log(PERIOD) * torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    )
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [place.reshape(-1, 1) * frequency for place in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()


def check_settings(config: DiTConfig, shape: tuple[int, ...]) -> None:
    """Raise InputError if the network cannot be built."""
    if len(shape) != 3:
        raise InputError(
            f"a dit needs images (channels, height, width), not shape {shape}: use the mlp"
        )
    if any(side % config.patch for side in shape[1:]):
        raise InputError(
            f"patch = {config.patch} does not divide {shape[1]}x{shape[2]} pixels: set patch = 1"
        )
    if config.width % 4 or config.width % config.head_dim:
        raise InputError(
            f"width = {config.width} does not fit head_dim = {config.head_dim}: width must be a "
            "multiple of 4 and of head_dim"
        )
