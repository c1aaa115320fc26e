"""How networks read prompts: a small transformer over tokens, and attention from pixels to them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.attention import (
    Images,
    attention,
    images,
    join_heads,
    pointwise,
    split_heads,
    tokens,
)
from fewstep.backbones.embedding import EmbeddingModules, embed
from fewstep.condition import Condition, Text, TextInput

HEAD_DIM = 32


@dataclass(frozen=True)
class TextContext:
    """Prompts as a network's own features."""

    tokens: Float[Tensor, "b m w"]
    """A start token, then those of the prompt."""
    mask: Bool[Tensor, "b m"]
    """True for the start token and the tokens of the prompt."""

    @property
    def pooled(self) -> Float[Tensor, "b w"]:
        """One vector for the whole prompt: the start token, which has read the others."""
        return self.tokens[:, 0]


class TextTransformer(nn.Module):
    """A pre-norm transformer that reads the tokens of an encoder, after a start token of its own.

    A row without tokens has the start token alone, so that attention to a prompt is always
    defined.
    """

    def __init__(self, text: TextInput, width: int, layers: int) -> None:
        super().__init__()
        self.text = text
        self.token: nn.Module = (
            nn.Linear(text.features, width)
            if text.features
            else nn.Embedding(text.vocabulary, width)
        )
        self.start = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(text.length, width))
        self.layers = nn.ModuleList(TextLayer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def initialise(self) -> None:
        """Set initial weights, in place: tokens of unit variance, small changes by each layer."""
        if isinstance(self.token, nn.Embedding):
            nn.init.normal_(self.token.weight)
        nn.init.normal_(self.start)
        nn.init.normal_(self.position, std=0.1)

    def forward(self, text: Text | None, x: Images) -> TextContext:
        """The features of `text`, or those of no prompt for each row of `x`."""
        start = self.start.expand(x.shape[0], -1, -1)
        always = torch.ones_like(x.flatten(1)[:, :1], dtype=torch.bool)
        if text is None:
            hidden, mask = start, always
        else:
            hidden = torch.cat([start, self._embed(text.tokens)], dim=1)
            mask = torch.cat([always, text.mask], dim=1)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return TextContext(self.norm(hidden), mask)

    def _embed(self, values: Tensor) -> Float[Tensor, "b n w"]:
        if values.is_floating_point():
            values = values.to(self.start.dtype)
        embedded = self.token(values)
        return embedded + self.position[: embedded.shape[1]]


class TextLayer(nn.Module):
    """Self-attention over tokens, then two linear layers for each token, both as residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = heads_of(width)
        self.norm1 = nn.LayerNorm(width)
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, width)

    def forward(
        self, x: Float[Tensor, "b m w"], mask: Bool[Tensor, "b m"] | None
    ) -> Float[Tensor, "b m w"]:
        q, k, v = (split_heads(part, self.heads) for part in self.to_qkv(self.norm1(x)).chunk(3, 2))
        x = x + self.to_out(join_heads(attention(q, k, v, mask)))
        return x + self.linear_2(functional.gelu(self.linear_1(self.norm2(x)), approximate="tanh"))


class CrossAttention(nn.Module):
    """Attention from pixels to tokens: `x + W_o softmax(q k^T / sqrt(d)) v`, with q of x.

    k and v are those of a `TextContext`. Rombach et al. 2022, arXiv:2112.10752, section 3.3.
    """

    def __init__(self, width: int, text_width: int, norm: nn.Module) -> None:
        super().__init__()
        self.heads = heads_of(width)
        self.group_norm = norm
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(text_width, width)
        self.to_v = nn.Linear(text_width, width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Images, context: TextContext) -> Images:
        q = tokens(pointwise(self.group_norm(x), self.to_q.weight, self.to_q.bias), self.heads)
        k, v = (split_heads(layer(context.tokens), self.heads) for layer in (self.to_k, self.to_v))
        mixed = images(attention(q, k, v, context.mask), like=x)
        return x + pointwise(mixed, self.to_out.weight, self.to_out.bias)


def heads_of(width: int) -> int:
    """Number of attention heads, with HEAD_DIM channels each if that divides `width`."""
    return max(1, width // HEAD_DIM) if width % HEAD_DIM == 0 else 1


@runtime_checkable
class PromptModules(EmbeddingModules, Protocol):
    """Modules of a network that `embed_with_prompts` uses; None without text."""

    text_transformer: TextTransformer | None
    text_proj: nn.Linear | None


def embed_with_prompts(
    net: PromptModules,
    x: Images,
    level: Float[Tensor, " b"],
    level_s: Float[Tensor, " b"] | None,
    cond: Condition | None,
) -> tuple[Float[Tensor, "b _"], TextContext | None]:
    """The activated embedding of level, class and prompt of each row, and the prompts' tokens."""
    emb = embed(net, level, level_s, cond)
    if net.text_transformer is None or net.text_proj is None:
        return functional.silu(emb), None
    text = None if cond is None else cond.text  # `and` would fix the number of rows in traces
    context: TextContext = net.text_transformer(text, x)
    return functional.silu(emb + net.text_proj(context.pooled)), context
