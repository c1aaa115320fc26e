"""Distances between images or states, for the losses of methods; each returns one value per row."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep import metrics
from fewstep.autoencoders import Decoder
from fewstep.errors import InputError
from fewstep.ranges import Address, NonNegative, Pixels

Rows = Float[Tensor, " b"]


def squared_error(a: Float[Tensor, "b ..."], b: Float[Tensor, "b ..."]) -> Rows:
    """The mean squared difference (b,) of each row."""
    return (a - b).square().flatten(1).mean(1)


class Distance(ABC):
    """Base class of distances between the rows of two batches."""

    noun: ClassVar[str] = "distance"

    @abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """The distances (b,) between `a` and `b`, both (b, ...). Differentiable in `a`."""


class PointDistance(Distance):
    """Base class of distances between any tensors: images, velocities, states of a sampler."""


class ImageDistance(Distance):
    """Base class of distances between the features that a network computes of images in [-1, 1]."""

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256 of the network's weights."""


@dataclass(frozen=True)
class SquaredError(PointDistance):
    """The mean squared difference."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return squared_error(a, b)


@dataclass(frozen=True)
class AbsoluteError(PointDistance):
    """The mean absolute difference."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber(PointDistance):
    """√(|a − b|² + c²) − c over a row's elements; with c = 0 the Euclidean norm.

    Song and Dhariwal 2023, arXiv:2310.14189, whose c is 0.00054·√(elements).
    """

    c: NonNegative = 0.00054
    """Difference at which the distance changes from quadratic to linear, in units of √(elements of
    a row)."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        square = (a - b).square().flatten(1).sum(1)
        c = self.c * a[0].numel() ** 0.5
        # the norm has an infinite gradient at 0; a floor below any real error keeps it finite
        return torch.sqrt(square + max(c, 1e-8) ** 2) - c


@dataclass(frozen=True)
class Lpips(ImageDistance):
    """LPIPS, a perceptual distance between images, plus `mse` times the mean squared difference.

    Zhang et al. 2018, arXiv:1801.03924.
    """

    trunk: Literal["squeeze", "alex", "vgg"] = "squeeze"
    """Network whose features are compared; its weights are read from $FEWSTEP_HOME/weights."""
    size: Pixels | None = None
    """Side in pixels to which images are resized first. Published for 32-pixel images: 64 or
    224."""
    mse: NonNegative = 0.0
    """Weight of the mean squared difference that is added to LPIPS."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        lpips = _lpips(self.trunk, self.size, str(a.device))
        return lpips.loss(a, b) + self.mse * squared_error(a, b)

    @property
    def hash(self) -> str:
        """SHA-256 of the network's weights."""
        return _lpips(self.trunk, self.size, "cpu").hash


@dataclass(frozen=True)
class Features(ImageDistance):
    """A perceptual distance like LPIPS, but on the features of any extractor, all weighted equally.

    It needs no LPIPS weights: the extractor may be a classifier trained on the run's own images.
    """

    extractor: str = "classifier"
    """classifier, squeezenet, resnet56-cifar10, inception or dinov2."""
    weights: Address | None = None
    """Weights file of the classifier; None means the classifier of the recipe's images."""
    mse: NonNegative = 0.0
    """Weight of the mean squared difference that is added to the feature distance."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        distance = metrics.FeatureDistance(self._maps)
        return distance.loss(a, b) + self.mse * squared_error(a, b)

    def _maps(self, images: Tensor) -> list[Tensor]:
        return _features(self.extractor, self.weights).feature_maps((images + 1) * 127.5)

    @property
    def hash(self) -> str:
        """SHA-256 of the network's weights."""
        return _features(self.extractor, self.weights).hash


def bind_classifier(config: Any, classifier: Callable[[], Path]) -> Any:
    """Set `weights` of each `Features` loss in a method's config that lacks its classifier's file.

    `classifier()` returns the weights file; it is called only if there is such a loss.
    """
    for field in fields(config) if is_dataclass(config) else ():
        loss = getattr(config, field.name)
        if isinstance(loss, Features) and loss.extractor == "classifier" and not loss.weights:
            bound = replace(loss, weights=str(classifier()))
            config = replace(config, **{field.name: bound})  # pyright: ignore
    return config


@dataclass(frozen=True, eq=False)
class DecodedDistance(ImageDistance):
    """A distance between the images that latents stand for."""

    distance: ImageDistance
    decoder: Decoder

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return self.distance(self.decoder(a), self.decoder(b))

    @property
    def hash(self) -> str:
        """SHA-256 of the distance's network."""
        return self.distance.hash


def bind_decoder(config: Any, decoder: Decoder | None) -> Any:
    """Let each loss on images in a method's config decode latents first; unchanged without one.

    Raises: InputError for a setting `clip`, which is a range of images.
    """
    if decoder is None:
        return config
    if getattr(config, "clip", None) is not None:
        raise InputError("method.clip clamps images, and this student generates latents: remove it")
    for field in fields(config) if is_dataclass(config) else ():
        loss = getattr(config, field.name)
        if isinstance(loss, ImageDistance):
            bound = DecodedDistance(loss, decoder)
            config = replace(config, **{field.name: bound})  # pyright: ignore
    return config


def perceptual_hash(config: Any, shape: tuple[int, ...]) -> str | None:
    """The hashes of the networks of a config's perceptual losses; None if it has no such loss.

    Raises: InputError if their weights are missing or do not accept images of `shape`.
    """
    values = [getattr(config, f.name) for f in fields(config)] if is_dataclass(config) else []
    hashes: list[str] = []
    for loss in values:
        if isinstance(loss, ImageDistance):
            image = torch.zeros(1, *shape)
            loss(image, image)
            hashes.append(loss.hash)
    return " ".join(hashes) or None


@lru_cache(maxsize=4)
def _lpips(trunk: str, size: int | None, device: str) -> metrics.Lpips:
    """The network, cached: its weights are constants, not part of a run's state."""
    return metrics.load_lpips(trunk, size=size).to(device)


@lru_cache(maxsize=4)
def _features(extractor: str, weights: Address | None) -> metrics.Extractor:
    if extractor != "classifier":
        return metrics.make_extractor(extractor)
    if weights is None:
        raise InputError(
            'the distance "features" with extractor = "classifier" has no weights; set weights to '
            "the classifier's file"
        )
    return metrics.read_classifier(Path(weights))
