"""The pixels themselves as features."""

import hashlib
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from fewstep.errors import InputError
from fewstep.metrics.extractors.base import Extractor, ExtractorOutput, ReferenceImages
from fewstep.metrics.extractors.resize import Resize

LARGEST = 4096  # pixels per image, because a covariance takes 8 bytes per pair of pixels


class Pixels(Extractor):
    """The image as one row of numbers in [0, 1]. It needs no training and no weights."""

    name = "pixels"
    hash = hashlib.sha256(b"uint8 / 255, flattened as c h w").hexdigest()[:16]

    @classmethod
    def create(
        cls,
        images: ReferenceImages | None = None,
        *,
        resize: Resize | None = None,
        cache: Path | None = None,
    ) -> Extractor:
        """Raises: InputError for a `resize`, and for images of more than 4,096 pixels."""
        if images is not None and images.images[0].numel() > LARGEST:
            raise InputError(
                f"images {tuple(images.images.shape[1:])} have {images.images[0].numel():,} "
                f"pixels, and the extractor pixels takes up to {LARGEST:,}; use another extractor"
            )
        return super().create(images, resize=resize, cache=cache)

    def extract(self, images: Float[Tensor, "n c h w"]) -> ExtractorOutput:
        return ExtractorOutput(images.flatten(1) / 255)
