"""Distances that several methods share. Each returns one number a row, of shape (b,)."""

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
from fewstep.errors import InputError

Rows = Float[Tensor, " b"]


def squared_error(a: Float[Tensor, "b ..."], b: Float[Tensor, "b ..."]) -> Rows:
    """The mean square difference of each row."""
    return (a - b).square().flatten(1).mean(1)


class Distance(ABC):
    """How far two batches are apart, row by row: `distance(a, b)` maps (b, ...) twice to (b,)."""

    noun: ClassVar[str] = "distance"

    @abstractmethod
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """One number a row, of shape (b,); `a` takes the gradient."""


class PointDistance(Distance):
    """A distance of any numbers: images, velocities, states on the way."""


class ImageDistance(Distance):
    """A distance of images in [-1, 1] alone, by the features of a network."""

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256 of the network's weights."""


@dataclass(frozen=True)
class SquaredError(PointDistance):
    """The mean square difference."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return squared_error(a, b)


@dataclass(frozen=True)
class AbsoluteError(PointDistance):
    """The mean absolute difference."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class PseudoHuber(PointDistance):
    """√(|a − b|² + c²) − c over a row's elements, c = 0: the plain norm.

    Song and Dhariwal 2023, arXiv:2310.14189, whose c is 0.00054·√(elements).
    """

    c: float = 0.00054
    """Where the distance turns from square to linear, in units of √(elements of a row)."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        square = (a - b).square().flatten(1).sum(1)
        width = self.c * a[0].numel() ** 0.5
        # the plain norm has no gradient at 0: a floor below any real error keeps it finite
        return torch.sqrt(square + max(width, 1e-8) ** 2) - width


@dataclass(frozen=True)
class Lpips(ImageDistance):
    """LPIPS, how far apart images look to people, plus a share of the mean square difference.

    Zhang et al. 2018, arXiv:1801.03924. Of images alone: a velocity has no look.
    """

    trunk: Literal["squeeze", "alex", "vgg"] = "squeeze"
    """Whose features are compared; its weights are looked for in $FEWSTEP_HOME/weights."""
    size: int | None = None
    """Side that images are resized to before; published distillations use 64 or 224 for 32."""
    mse: float = 0.0
    """Weight of the mean square difference beside it."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        seen = _lpips(self.trunk, self.size, str(a.device))
        return seen.loss(a, b) + self.mse * squared_error(a, b)

    @property
    def hash(self) -> str:
        """SHA-256 of the network's weights."""
        return _lpips(self.trunk, self.size, "cpu").hash


@dataclass(frozen=True)
class Features(ImageDistance):
    """As LPIPS, but all weights alike and of any extractor: for machines without LPIPS weights.

    `classifier` is the one that the run's own images train; it is then not LPIPS and is not called
    so. Of images alone.
    """

    extractor: str = "classifier"
    """classifier, squeezenet, resnet56-cifar10, inception or dinov2."""
    weights: str | None = None
    """The classifier's file; by default that of the recipe's images."""
    mse: float = 0.0
    """Weight of the mean square difference beside it."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        seen = metrics.FeatureDistance(self._maps)
        return seen.loss(a, b) + self.mse * squared_error(a, b)

    def _maps(self, images: Tensor) -> list[Tensor]:
        return _features(self.extractor, self.weights).feature_maps((images + 1) * 127.5)

    @property
    def hash(self) -> str:
        """SHA-256 of the network's weights."""
        return _features(self.extractor, self.weights).hash


def bind_classifier(config: Any, classifier: Callable[[], Path]) -> Any:
    """A method's config with `features` of the classifier bound to the file of the run's images.

    `classifier()` is that file, asked for only where it is needed.
    """
    for field in fields(config) if is_dataclass(config) else ():
        told = getattr(config, field.name)
        if isinstance(told, Features) and told.extractor == "classifier" and not told.weights:
            bound = replace(told, weights=str(classifier()))
            config = replace(config, **{field.name: bound})  # pyright: ignore
    return config


def perceptual_hash(config: Any, shape: tuple[int, ...]) -> str | None:
    """What the networks of a config's perceptual losses are, tried on an image of `shape`.

    None where there are none.  Raises: InputError for missing weights, or images that they do not
    take.
    """
    told = [getattr(config, f.name) for f in fields(config)] if is_dataclass(config) else []
    hashes: list[str] = []
    for loss in told:
        if isinstance(loss, ImageDistance):
            image = torch.zeros(1, *shape)
            loss(image, image)
            hashes.append(loss.hash)
    return " ".join(hashes) or None


@lru_cache(maxsize=4)
def _lpips(trunk: str, size: int | None, device: str) -> metrics.Lpips:
    """Loaded once: its weights are constants, and no part of a run's state."""
    return metrics.load_lpips(trunk, size=size).to(device)


@lru_cache(maxsize=4)
def _features(extractor: str, weights: str | None) -> metrics.Extractor:
    if extractor != "classifier":
        return metrics.make_extractor(extractor)
    if weights is None:
        raise InputError("a features loss of a classifier needs weights: its file")
    return metrics.read_classifier(Path(weights))
