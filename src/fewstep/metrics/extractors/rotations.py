"""A small network that is trained without labels: it recognises how an image was rotated.

Gidaris et al. 2018, arXiv:1803.07728. As the classifier, it needs no download and trains in
seconds, so that sets without classes have a score by default.
"""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.errors import InputError
from fewstep.metrics.extractors.base import ExtractorOutput, ReferenceImages, resize_error
from fewstep.metrics.extractors.classifier import Classifier, classifier_for
from fewstep.metrics.extractors.resize import Resize

MAX_IMAGES = 10_000
MAX_BYTES = 1 << 30  # of all rotations of the images, which are in memory


class Rotations(Classifier):
    """64 features of a network that tells the rotations of the real images apart.

    It has no logits, because its classes are no property of an image.
    """

    name = "rotations"
    classifies = False

    @classmethod
    def create(
        cls,
        images: ReferenceImages | None = None,
        *,
        resize: Resize | None = None,
        cache: Path | None = None,
    ) -> "Rotations":
        """The network for these images: read from `cache`, or trained and saved.

        It learns from all images, or, of large sets, from at most 10,000 and 1 GiB of them.

        Raises: InputError for a `resize`, or if there are no images.
        """
        if resize:
            raise resize_error(cls.name, resize)
        if images is None:
            raise InputError("the extractor rotations is trained on images; give it some")
        fingerprint = f"rotations of {images.fingerprint}"
        return cls(
            classifier_for(*rotate(images.images), fingerprint=fingerprint, cache=cache).network
        )

    def extract(self, images: Float[Tensor, "n c h w"]) -> ExtractorOutput:
        return ExtractorOutput(super().extract(images).features)


def rotate(images: UInt8[Tensor, "n c h w"]) -> tuple[UInt8[Tensor, "m c h w"], Tensor]:
    """Images rotated by 0, 90, 180 and 270°, those that are not square by 0 and 180°; labels.

    Of a large set, some images are selected with a fixed seed.
    """
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    count = min(MAX_IMAGES, max(2, MAX_BYTES // (4 * images[0].numel())))
    subset = images[order[:count]]
    quarters = range(4) if images.shape[2] == images.shape[3] else (0, 2)
    rotations = [torch.rot90(subset, k, (2, 3)) for k in quarters]
    labels = torch.arange(len(rotations)).repeat_interleave(len(subset))
    return torch.cat(rotations), labels
