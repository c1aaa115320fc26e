"""`PretrainedExtractor`: a network with published weights and a fixed input size."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.metrics.extractors.base import Extractor, ExtractorOutput, ReferenceImages
from fewstep.metrics.extractors.resize import Resize, resize_images
from fewstep.metrics.extractors.weights import weights_digest
from fewstep.precision import float32_products

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # pixels in [0, 1]


class PretrainedExtractor(Extractor):
    """Resizes images to the network's input size, with grey repeated to three channels.

    A subclass sets the class variables and defines `load_network`. `network` maps float images in
    [0, 255] of that size to `ExtractorOutput`; it may also have a method `feature_maps(images)`.
    """

    size: ClassVar[int]
    """Height and width of the network's input."""
    standard_resize: ClassVar[Resize]
    """The resize used by published scores."""
    class_set: ClassVar[str | None] = None
    """Name of the data set whose classes the logits are for."""
    published_hash: ClassVar[str | None] = None
    """Hash of the one accepted weights file; by default the loaded weights are hashed."""

    def __init__(
        self, network: nn.Module, *, resize: Resize | None = None, hash: str | None = None
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.hash = hash or weights_digest(network, self.name)
        self.method: Resize = resize or self.standard_resize
        self.resize = f"{self.method} to {self.size}"

    @classmethod
    @abstractmethod
    def load_network(cls) -> nn.Module:
        """Build the network with its published weights.

        Raises: InputError if weights or packages are missing.
        """

    @classmethod
    def create(
        cls,
        images: ReferenceImages | None = None,
        *,
        resize: Resize | None = None,
        cache: Path | None = None,
    ) -> "PretrainedExtractor":
        """The extractor with its published weights.

        Raises: InputError if these are missing, or `images` are neither grey nor colour.
        """
        if images is not None and images.images.shape[1] not in (1, 3):
            channels = images.images.shape[1]
            raise InputError(f"{cls.name} takes images of 1 or 3 channels, not {channels}")
        extractor = cls(cls.load_network(), resize=resize, hash=cls.published_hash)
        extractor.classifies = images is not None and images.name == cls.class_set
        return extractor

    def extract(self, images: Float[Tensor, "n c h w"]) -> ExtractorOutput:
        with float32_products():  # TF32 would change features by 1e-3
            resized = self._resize(images)
            # as clean-fid does, because bicubic resizing overshoots at edges
            resized = resized.clamp(0, 255) if self.method == "clean-bicubic" else resized
            return self.network.to(images.device)(resized)

    def feature_maps(self, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
        network: Any = self.network.to(images.device)
        if not hasattr(network, "feature_maps"):
            return super().feature_maps(images)
        return network.feature_maps(self._resize(images))

    def _resize(self, images: Tensor) -> Tensor:
        return resize_images(as_colour(images), self.size, self.method)


class Normalize(nn.Module):
    """Normalises images in [0, 255] by the mean and standard deviation of ImageNet's channels."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, moment in [("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)]:
            self.register_buffer(name, 255 * torch.tensor(moment).view(3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        return (images - self.mean) / self.std


def as_colour(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Grey images with their channel repeated three times; colour images unchanged."""
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
