"""Embedding of the noise level, the destination and the class, one vector per row."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from fewstep.condition import AUGMENT_LABELS, NO_LABEL, Condition, TextInput

PERIOD = 10_000  # longest wavelength / 2π


@dataclass(frozen=True)
class Sinusoid:
    """Sinusoidal features (b, width) of levels between 0 and about 1000.

    `sin(level f_k)`, then `cos(level f_k)`, with `f_k = pace 10000^(-k / (width/2 - shift))`.
    With `cosine_first` the cosines come first. `shift` is 1 in DDPM, and by default 0 in diffusers.
    A `pace` of None counts as 1; see `set_pace`.
    Vaswani et al. 2017, arXiv:1706.03762.
    """

    width: int
    shift: float = 1.0
    cosine_first: bool = False
    pace: float | None = 1.0

    def __call__(self, level: Float[Tensor, " b"]) -> Float[Tensor, "b width"]:
        half = self.width // 2
        # at least float32, because half precision cannot resolve levels up to 1000
        dtype = torch.promote_types(level.dtype, torch.float32)
        k = torch.arange(half, dtype=dtype, device=level.device)
        frequency = torch.exp(-math.log(PERIOD) * k / (half - self.shift))
        angle = _factor(self.pace) * level[:, None] * frequency
        parts = [torch.sin(angle), torch.cos(angle)]
        return torch.cat(parts[::-1] if self.cosine_first else parts, dim=1)


class Fourier(nn.Module):
    """Features (b, width) of levels: `sin(2π pace f_k level)`, then cosines; f_k are random.

    Song et al. 2021, arXiv:2011.13456, with frequencies of standard deviation 16.
    """

    def __init__(self, width: int, pace: float | None = 1.0) -> None:
        super().__init__()
        self.pace = pace
        self.register_buffer("frequencies", 16 * torch.randn(width // 2))

    def forward(self, level: Float[Tensor, " b"]) -> Float[Tensor, "b width"]:
        dtype = torch.promote_types(level.dtype, torch.float32)
        frequencies = self.get_buffer("frequencies").to(dtype)
        angle = level.to(dtype)[:, None] * (2 * math.pi * _factor(self.pace) * frequencies)
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)


def _factor(pace: float | None) -> float:
    return 1.0 if pace is None else pace


class LevelEmbedding(nn.Module):
    """Two linear layers with an activation between them. Their names are those of diffusers."""

    def __init__(
        self,
        width_in: int,
        width: int,
        activation: Callable[[Tensor], Tensor] = functional.silu,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.linear_1 = nn.Linear(width_in, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, features: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        features = features.to(self.linear_1.weight.dtype)
        return self.linear_2(self.activation(self.linear_1(features)))


def augment_embedding(width: int) -> nn.Linear:
    """The layer that maps labels of augmentation (b, 9) to vectors (b, width).

    Karras et al. 2022, arXiv:2206.00364, appendix F.2.
    """
    return nn.Linear(AUGMENT_LABELS, width, bias=False)


@runtime_checkable
class EmbeddingModules(Protocol):
    """Modules of a network that `embed` uses; the names are those of diffusers."""

    classes: int
    text: TextInput | None
    sinusoid: Callable[[Tensor], Tensor]
    time_embedding: LevelEmbedding
    time_embedding_s: LevelEmbedding | None
    class_embedding: nn.Embedding | None
    augment_embedding: nn.Linear | None


def embed(
    net: EmbeddingModules,
    level: Float[Tensor, " b"],
    level_s: Float[Tensor, " b"] | None,
    cond: Condition | None,
    *,
    class_first: bool = False,
    augment_first: bool = False,
) -> Float[Tensor, "b width"]:
    """Sum of the embeddings of the level, the distance to the destination, the class and labels of
    augmentation.

    A network with two times embeds the difference `level - level_s`. It is 0 at all levels for the
    instantaneous velocity, where `level_s = level`. With `class_first` the class is added to the
    features of the level, before the layers of the level's embedding, and so are the labels of
    augmentation with `augment_first`. Their layer has no bias, so that labels of 0 have no effect.

    Raises: ValueError for a `level_s` or `cond` that `net` was not built for.
    """
    features = net.sinusoid(level)
    label = None if cond is None else cond.label
    labels = None if cond is None else cond.augment_labels
    if net.text is None and cond is not None and cond.text is not None:
        raise ValueError("this network reads no prompts: build it with text")
    augment_vector = None if labels is None else _embed_labels(net, labels)
    if augment_vector is not None and augment_first:
        features, augment_vector = features + augment_vector, None
    if net.class_embedding is None:
        if label is not None:
            raise ValueError("this network has no classes: build it with classes")
        total = net.time_embedding(features)
    else:
        class_vector = net.class_embedding(class_indices(net.classes, level, cond))
        if class_first:
            total = net.time_embedding(features + class_vector)
        else:
            total = net.time_embedding(features) + class_vector
    if augment_vector is not None:
        total = total + augment_vector
    if net.time_embedding_s is not None:
        distance = torch.zeros_like(level) if level_s is None else level - level_s
        total = total + net.time_embedding_s(net.sinusoid(distance))
    elif level_s is not None:
        raise ValueError("this network has one time and takes no level_s: build it with two_times")
    return total


def _embed_labels(net: EmbeddingModules, labels: Float[Tensor, "b 9"]) -> Float[Tensor, "b _"]:
    if net.augment_embedding is None:
        raise ValueError(
            "this network takes no labels of augmentation: build it with augmented = True"
        )
    return net.augment_embedding(labels.to(net.augment_embedding.weight.dtype))


def class_indices(
    classes: int, level: Float[Tensor, " b"], cond: Condition | None
) -> Int64[Tensor, " b"]:
    """Indices (b,) into the class embedding: the label, or the last row if there is no label."""
    if cond is None or cond.label is None:
        return torch.full_like(level, classes, dtype=torch.int64)
    return torch.where(cond.label == NO_LABEL, classes, cond.label)
