"""Extractors by name: networks and functions that turn images into features."""

from pathlib import Path

from fewstep.errors import InputError, did_you_mean
from fewstep.metrics.extractors.base import Extractor, ExtractorOutput, ReferenceImages
from fewstep.metrics.extractors.classifier import (
    Classifier,
    classifier_file,
    read_classifier,
    train_classifier,
)
from fewstep.metrics.extractors.dinov2 import Dinov2
from fewstep.metrics.extractors.inception import INCEPTION_HASH, Inception
from fewstep.metrics.extractors.pixels import Pixels
from fewstep.metrics.extractors.pretrained import PretrainedExtractor
from fewstep.metrics.extractors.resize import Resize
from fewstep.metrics.extractors.resnet import ResNet56Cifar10
from fewstep.metrics.extractors.squeezenet import SqueezeNet

__all__ = [
    "EXTRACTORS",
    "INCEPTION_HASH",
    "Classifier",
    "Extractor",
    "ExtractorOutput",
    "Pixels",
    "PretrainedExtractor",
    "ReferenceImages",
    "Resize",
    "classifier_file",
    "make_extractor",
    "read_classifier",
    "train_classifier",
]

EXTRACTORS: dict[str, type[Extractor]] = {
    "classifier": Classifier,
    "pixels": Pixels,
    "inception": Inception,
    "dinov2": Dinov2,
    "squeezenet": SqueezeNet,
    "resnet56-cifar10": ResNet56Cifar10,
}


def make_extractor(
    name: str,
    images: ReferenceImages | None = None,
    *,
    resize: Resize | None = None,
    cache: Path | None = None,
) -> Extractor:
    """The extractor called `name`, for measuring against `images`; without them, for any images.

    `resize` replaces the standard resize of a network with a fixed input size. `cache` is the
    folder of trained classifiers.

    Raises: InputError for an unknown name, missing weights, or images or a resize that the
    extractor does not take.
    """
    if name not in EXTRACTORS:
        raise InputError(
            f"unknown extractor {name!r}{did_you_mean(name, EXTRACTORS)} "
            f"(choose one of {', '.join(EXTRACTORS)})"
        )
    return EXTRACTORS[name].create(images, resize=resize, cache=cache)
