"""What metrics compare: each image as a row of numbers, by an extractor that can be named."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from fewstep.files import tensor_digest

BATCH = 256  # images a network sees at once: bounds the memory, not the result


class ExtractorOutput(NamedTuple):
    """What a network makes of images: a row of features each, and class scores if it has any."""

    features: Tensor
    logits: Tensor | None = None


class Extractor(ABC):
    """uint8 images to a float32 matrix with one row an image, computed where the images are.

    `name` says which features these are, `hash` changes with anything that changes the network, and
    `resize` says how images were brought to its input size. All are stored with each score, and
    only scores that share them may be compared.
    """

    name: str
    hash: str
    resize: str = "none"
    classifies: bool = False
    """Whether its logits are of the classes of the set that is measured."""

    def __call__(self, images: UInt8[Tensor, "n c h w"]) -> Float32[Tensor, "n d"]:
        """The features of any number of images, without gradient."""
        return torch.cat([seen.features for seen in self.see(images)])

    def see(self, images: UInt8[Tensor, "n c h w"]) -> Iterator[ExtractorOutput]:
        """Features and class scores, a batch at a time and without gradient."""
        for part in images.split(BATCH):
            with torch.no_grad():
                seen = self.seen(part.float())
            yield seen

    @abstractmethod
    def seen(self, images: Float[Tensor, "n c h w"]) -> ExtractorOutput:
        """One batch, in the units of uint8 (0 … 255) but float: gradient flows."""

    def feature_maps(self, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
        """Activations (n, d, h, w) for a perceptual distance; units as in `seen`."""
        return [self.seen(images).features[..., None, None]]


class Pixels(Extractor):
    """The image itself, flattened, in [0, 1]: needs no training and knows nothing."""

    name = "pixels"
    hash = hashlib.sha256(b"uint8 / 255, flattened as c h w").hexdigest()[:16]

    def seen(self, images: Float[Tensor, "n c h w"]) -> ExtractorOutput:
        return ExtractorOutput(images.flatten(1) / 255)


def digest(network: nn.Module, about: str) -> str:
    """Sixteen digits that change with any weight, and with `about`."""
    return tensor_digest(network.state_dict(), about=about)[:16]


def coloured(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Grey images as three equal channels, for networks that know only colour."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
