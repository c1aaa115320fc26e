"""The extractors by the names that recipes and the command line use."""

from pathlib import Path

from jaxtyping import Int64, UInt8
from torch import Tensor

from fewstep.errors import InputError
from fewstep.metrics.classifier import classifier_for
from fewstep.metrics.features import Extractor, Pixels

EXTRACTORS = ("classifier", "pixels")


def make_extractor(
    name: str,
    *,
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"] | None,
    fingerprint: str,
    cache: Path | None,
) -> Extractor:
    """The extractor called `name`, for the reference set that `fingerprint` identifies.

    `images` and `labels` are that set; `cache` is the folder where trained weights are kept.
    Raises InputError for an unknown name, or for "classifier" on a set without classes.
    """
    if name == "pixels":
        return Pixels()
    if name != "classifier":
        known = ", ".join(EXTRACTORS)
        raise InputError(f'there is no extractor "{name}"; choose one of: {known}')
    if labels is None or labels.max() == labels.min():
        raise InputError(
            'the extractor "classifier" learns to tell classes apart and this set has none;'
            ' use the extractor "pixels"'
        )
    return classifier_for(images, labels, fingerprint=fingerprint, cache=cache)
