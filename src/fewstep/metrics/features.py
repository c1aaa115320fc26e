"""What metrics compare: each image as a row of numbers, by an extractor that can be named."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

BATCH = 256  # images a network sees at once: bounds the memory, not the result


class Extractor(ABC):
    """uint8 images to a float32 matrix with one row an image, computed where the images are.

    `name` says which features these are; `hash` changes with anything that changes them. Both are
    stored with each score, and only scores that share them may be compared.
    """

    name: str
    hash: str

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n d"]:
        """The features of any number of images, without gradient."""
        return in_batches(self.features, images)

    @abstractmethod
    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n d"]:
        """The features of one batch."""


class Pixels(Extractor):
    """The image itself, flattened, in [0, 1]: needs no training and knows nothing."""

    name = "pixels"
    hash = hashlib.sha256(b"uint8 / 255, flattened as c h w").hexdigest()[:16]

    def features(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n d"]:
        return images.flatten(1).float() / 255


def in_batches(function: Callable[[Tensor], Tensor], images: UInt8[Tensor, "n c h w"]) -> Tensor:
    """`function(images)` of a row-wise function, a batch at a time and without gradient."""
    with torch.no_grad():
        return torch.cat([function(part) for part in images.split(BATCH)])
