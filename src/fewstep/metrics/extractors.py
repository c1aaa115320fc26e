"""The extractors by the names that recipes and the command line use."""

from pathlib import Path

from jaxtyping import Int64, UInt8
from torch import Tensor

from fewstep.errors import InputError, did_you_mean
from fewstep.metrics.classifier import classifier_for
from fewstep.metrics.features import Extractor, Pixels
from fewstep.metrics.networks import NETWORKS, published
from fewstep.metrics.resize import Resize

EXTRACTORS = ("classifier", "pixels", *NETWORKS)


def make_extractor(
    name: str,
    *,
    resize: Resize | None = None,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | None,
    fingerprint: str,
    cache: Path | None,
) -> Extractor:
    """The extractor called `name`, for the reference set that `fingerprint` identifies.

    `images` and `labels` are that set; `cache` is the folder where trained weights are kept.
    `resize` is for networks of a fixed size of image: another way to bring images to it than the
    network's standard. Raises InputError for an unknown name, a resize where there is nothing to
    resize, "classifier" on a set without classes, or missing weights.
    """
    if name not in EXTRACTORS:
        raise InputError(
            f"there is no extractor {name!r}{did_you_mean(name, EXTRACTORS)}; "
            f"choose one of: {', '.join(EXTRACTORS)}"
        )
    if name in NETWORKS:
        if images.shape[1] not in (1, 3):
            raise InputError(f"{name} sees grey or colour images, not {images.shape[1]} channels")
        return published(name, resize)
    if resize:
        raise InputError(f"{name} takes images as they are; resize is for {', '.join(NETWORKS)}")
    if name == "pixels":
        return Pixels()
    if labels is None or labels.max() == labels.min():
        raise InputError(
            'the extractor "classifier" learns to tell classes apart and this set has none;'
            ' use the extractor "pixels"'
        )
    return classifier_for(images, labels, fingerprint=fingerprint, cache=cache)
