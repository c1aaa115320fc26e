"""The extractors by the names that recipes and the command line use."""

from pathlib import Path

from jaxtyping import Int64, UInt8
from torch import Tensor

from fewstep.errors import InputError, did_you_mean
from fewstep.metrics.classifier import classifier_for
from fewstep.metrics.features import Extractor, Pixels
from fewstep.metrics.networks import NETWORKS, load_pretrained
from fewstep.metrics.resize import Resize

LARGEST = 4096  # pixels of an image: covariances take 8 bytes a pair of them
EXTRACTORS = ("classifier", "pixels", *NETWORKS)


def make_extractor(
    name: str,
    *,
    resize: Resize | None = None,
    set_name: str = "",
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | None,
    fingerprint: str,
    cache: Path | None,
) -> Extractor:
    """The extractor called `name`, for the reference set that `fingerprint` identifies.

    `images` and `labels` are that set, `set_name` what it is called; `cache` is the folder where
    trained weights are kept. `resize` is for networks of a fixed size of image: another way to
    bring images to it than the network's standard. Raises InputError for an unknown name, a resize
    where there is nothing to resize, "classifier" on a set without classes, or missing weights.
    """
    if name not in EXTRACTORS:
        raise InputError(
            f"there is no extractor {name!r}{did_you_mean(name, EXTRACTORS)}; "
            f"choose one of: {', '.join(EXTRACTORS)}"
        )
    if name in NETWORKS:
        if images.shape[1] not in (1, 3):
            raise InputError(f"{name} sees grey or colour images, not {images.shape[1]} channels")
        made = load_pretrained(name, resize)
        made.classifies = (name, set_name) == ("resnet56-cifar10", "cifar10")
        return made
    if resize:
        raise InputError(f"{name} takes images as they are; resize is for {', '.join(NETWORKS)}")
    if name == "pixels":
        return _pixels(images)
    if labels is None or labels.max() == labels.min():
        raise InputError(
            'the extractor "classifier" learns to tell classes apart and this set has none;'
            ' use the extractor "pixels"'
        )
    return classifier_for(images, labels, fingerprint=fingerprint, cache=cache)


def _pixels(images: UInt8[Tensor, "n c h w"]) -> Pixels:
    if images[0].numel() > LARGEST:
        raise InputError(
            f"pixels of {tuple(images.shape[1:])} are {images[0].numel():,} features, and a "
            f"covariance is worth its memory up to {LARGEST:,}; use another extractor"
        )
    return Pixels()
