"""`Extractor`, the interface of networks and functions that turn images into features."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from fewstep.errors import InputError
from fewstep.metrics.extractors.resize import Resize
from fewstep.precision import float32_products

BATCH = 256  # images per forward pass: bounds the memory and does not change the result


@runtime_checkable
class ReferenceImages(Protocol):
    """The real images that scores are measured against, such as a `data.ImageSet`."""

    @property
    def name(self) -> str: ...
    @property
    def images(self) -> UInt8[Tensor, "n c h w"]: ...
    @property
    def labels(self) -> Int64[Tensor, " n"] | None: ...
    @property
    def fingerprint(self) -> Any:  # a str, but pyright rejects a cached_property for it
        """Hash of images and labels."""


def resize_error(name: str, resize: Resize) -> InputError:
    """The error for a `resize` of an extractor that has no fixed input size."""
    return InputError(f"{name} does not resize images; leave out the resize {resize!r}")


class ExtractorOutput(NamedTuple):
    """Features (n, d) of a batch of images, and class logits (n, k) if the network has classes."""

    features: Tensor
    logits: Tensor | None = None


class Extractor(ABC):
    """Maps uint8 images to a float32 matrix of features with one row per image.

    A subclass sets `name` and `hash`, and defines `extract`. Both are stored with each score, and
    only scores with the same name, hash and resize are compared. `hash` must therefore change with
    anything that changes the features. Features are computed on the device of the images.
    """

    name: str
    hash: str
    resize: str = "none"
    """How images are resized to the input size of the network."""
    classifies: bool = False
    """Whether the logits are for the classes of the data set, so that accuracy can be measured."""

    @classmethod
    def create(
        cls,
        images: ReferenceImages | None = None,
        *,
        resize: Resize | None = None,
        cache: Path | None = None,
    ) -> "Extractor":
        """Create the extractor. `images` are the real images that scores compare with, if any.

        By default the class is called without arguments. `resize` is for networks with a fixed
        input size. `cache` is a folder for trained weights.

        Raises: InputError if it cannot be made for these images or with this `resize`.
        """
        if resize:
            raise resize_error(cls.name, resize)
        return cls()

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n d"]:
        """Features of any number of images, computed in batches and without gradients."""
        return torch.cat([output.features for output in self.iter_outputs(images)])

    def iter_outputs(self, images: UInt8[Tensor, "n c h w"]) -> Iterator[ExtractorOutput]:
        """Yield features and logits batch by batch, without gradients, in float32."""
        for batch in images.split(BATCH):
            with torch.no_grad(), float32_products():
                output = self.extract(batch.float())
            yield output

    @abstractmethod
    def extract(self, images: Float[Tensor, "n c h w"]) -> ExtractorOutput:
        """Features of a batch of float images in [0, 255], differentiable in the images."""

    def feature_maps(self, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """Activations (n, d, h, w) for a perceptual distance, of float images in [0, 255]."""
        return [self.extract(images).features[..., None, None]]
