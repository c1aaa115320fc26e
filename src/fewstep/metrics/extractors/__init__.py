"""Extractors by name: networks and functions that turn images into features."""

from pathlib import Path
from typing import Any

from fewstep import plugins
from fewstep.errors import InputError
from fewstep.metrics.extractors.base import (
    Extractor,
    ExtractorOutput,
    ReferenceImages,
    resize_error,
)
from fewstep.metrics.extractors.classifier import (
    Classifier,
    classifier_file,
    has_classes,
    read_classifier,
    train_classifier,
)
from fewstep.metrics.extractors.inception import INCEPTION_HASH
from fewstep.metrics.extractors.pixels import Pixels
from fewstep.metrics.extractors.pretrained import PretrainedExtractor
from fewstep.metrics.extractors.resize import Resize

__all__ = [
    "INCEPTION_HASH",
    "Classifier",
    "Extractor",
    "ExtractorOutput",
    "Pixels",
    "PretrainedExtractor",
    "ReferenceImages",
    "Resize",
    "classifier_file",
    "has_classes",
    "make_extractor",
    "read_classifier",
    "train_classifier",
]


def make_extractor(
    name: str,
    images: ReferenceImages | None = None,
    *,
    resize: Resize | None = None,
    cache: Path | None = None,
) -> Extractor:
    """The extractor called `name`. `images` are the real images that scores compare with.

    `name` is a registered name, or an address `package.module:NAME` of a subclass of `Extractor` or
    of a function without arguments that returns an extractor. `resize` replaces the standard resize
    of a network with a fixed input size. `cache` is the folder of trained classifiers.

    Raises: InputError for an unknown name, missing weights, or images or a resize that the
    extractor does not support.
    """
    target: Any = plugins.resolve("extractor", name)
    if isinstance(target, type) and issubclass(target, Extractor):
        return _check(name, target.create(images, resize=resize, cache=cache))
    if resize:
        raise resize_error(name, resize)
    return _check(name, target() if callable(target) else target)


def _check(name: str, extractor: Any) -> Extractor:
    if not isinstance(extractor, Extractor):
        kind = type(extractor).__name__
        raise InputError(f"the extractor {name} is of type {kind}, not Extractor")
    for attribute in ("name", "hash"):
        if not isinstance(getattr(extractor, attribute, None), str):
            raise InputError(f"the extractor {name} must set {attribute!r} to a string")
    return extractor
