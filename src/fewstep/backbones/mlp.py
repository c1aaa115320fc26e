"""A small multilayer perceptron for points in the plane and other vectors."""

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.embedding import LevelEmbedding, Sinusoid, embed
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.ranges import DepthOrZero, Positive


@dataclass(frozen=True)
class MLPConfig(BackboneConfig):
    """Settings of an `MLP`.

    With the defaults it has about 700,000 parameters and trains on a toy data set in seconds.
    """

    width: Annotated[int, Ge(4), Le(65_536)] = 256
    """Size of the hidden layers; even, and at least 4."""
    depth: DepthOrZero = 3
    """Number of residual layers."""
    two_times: bool = False
    """Whether there is an input for the destination, for flow maps; initially it has no effect."""
    level_scale: Positive = 250.0
    """Factor for logarithmic levels (EDM's), so that they span the range of the embedding."""
    pace: Positive | None = None
    """Factor of the frequencies in the embedding of the level. Small values, such as 0.03, keep the
    network's derivative along time small, as MeanFlow and sCM need. None is 0.004 for logarithmic
    levels (EDM's) and 1 for others."""

    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "MLP":
        """Build a network for samples of `shape`.

        Initial weights come from torch's default generator.

        Raises: InputError if the settings do not fit each other or `shape`.
        """
        return MLP(self, shape=shape, classes=classes)


class Residual(nn.Module):
    """`h + W_2 silu(W_1 silu(h) + W_e emb)`; `W_2` starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.emb_proj = nn.Linear(width, width, bias=False)
        self.outer = nn.Linear(width, width)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(
        self, hidden: Float[Tensor, "b width"], emb: Float[Tensor, "b width"]
    ) -> Float[Tensor, "b width"]:
        inner = self.inner(functional.silu(hidden)) + self.emb_proj(emb)
        return hidden + self.outer(functional.silu(inner))


class MLP(Backbone):
    """Residual multilayer perceptron; samples of any shape are flattened.

    The output layer is initialised to zero, and so is the last layer of every branch.
    """

    def __init__(self, config: MLPConfig, *, shape: tuple[int, ...], classes: int = 0) -> None:
        super().__init__()
        width = config.width
        if width % 2 or width < 4:
            raise InputError(f"width is {width}; an mlp needs an even width of at least 4")
        self.config, self.shape, self.classes = config, shape, classes
        self.level_scale = config.level_scale
        self.sinusoid = Sinusoid(width, pace=config.pace)
        self.time_embedding = LevelEmbedding(width, width)
        self.time_embedding_s = LevelEmbedding(width, width) if config.two_times else None
        self.class_embedding = nn.Embedding(classes + 1, width) if classes else None
        self.augment_embedding: nn.Linear | None = None
        self.first = nn.Linear(math.prod(shape), width)
        self.layers = nn.ModuleList(Residual(width) for _ in range(config.depth))
        self.last = nn.Linear(width, math.prod(shape))
        zero_layers = [self.last]
        if self.time_embedding_s is not None:
            zero_layers.append(self.time_embedding_s.linear_2)
        for layer in zero_layers:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Float[Tensor, "b *shape"],
        level: Float[Tensor, " b"],
        *,
        level_s: Float[Tensor, " b"] | None = None,
        cond: Condition | None = None,
    ) -> Float[Tensor, "b *shape"]:
        *_, hidden = self._hidden(x, embed(self, level, level_s, cond))
        return self.last(functional.silu(hidden)).reshape(x.shape)

    def features(
        self,
        x: Float[Tensor, "b *shape"],
        level: Float[Tensor, " b"],
        *,
        cond: Condition | None = None,
    ) -> list[Float[Tensor, "b _"]]:
        """Outputs (b, config.width) of the residual layers."""
        return self._hidden(x, embed(self, level, None, cond))[1:]

    def _hidden(
        self, x: Float[Tensor, "b *shape"], emb: Float[Tensor, "b width"]
    ) -> list[Float[Tensor, "b width"]]:
        emb = functional.silu(emb)
        hidden = [self.first(x.flatten(1))]
        for layer in self.layers:
            hidden.append(layer(hidden[-1], emb))
        return hidden
