"""Names of Fréchet distances: FID with the standard Inception weights only."""

from fewstep.metrics.extractors import INCEPTION_HASH


def is_standard(extractor: str, extractor_hash: str) -> bool:
    """Whether features are those of the standard Inception weights, as in FID."""
    return (extractor, extractor_hash) == ("inception", INCEPTION_HASH)


def distance_name(extractor: str, extractor_hash: str, resize: str) -> str:
    """Name of the Fréchet distance of these features, for images resized by the method `resize`."""
    if not is_standard(extractor, extractor_hash):
        return f"Fréchet distance ({extractor})"
    return "FID" if resize.startswith("tf1-bilinear") else f"FID ({resize})"
