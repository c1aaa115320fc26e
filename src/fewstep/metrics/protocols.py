"""Evaluation protocols by name. Scores of different protocols are not comparable."""

from dataclasses import dataclass, replace

from fewstep.errors import InputError, did_you_mean
from fewstep.metrics.extractors.resize import Resize


@dataclass(frozen=True)
class EvalProtocol:
    """How scores are measured: the number of samples, the extractor, and its resize."""

    samples: int
    extractor: str
    resize: Resize | None = None
    """How images are resized for the extractor; None uses the extractor's standard."""
    measures: tuple[str, ...] = ()
    """Names of extra measures, which are not in `MEASURES`."""
    unlabelled_extractor: str | None = None
    """The extractor for sets without classes, if `extractor` needs classes."""

    def with_settings(
        self,
        *,
        samples: int | None = None,
        extractor: str | None = None,
        resize: Resize | None = None,
        measures: tuple[str, ...] = (),
    ) -> "EvalProtocol":
        """A copy with these settings replaced; None and () keep the protocol's own.

        Another `extractor` also resets the resize to that extractor's standard, and is used for
        all sets.

        Raises: InputError for fewer than 2 samples.
        """
        protocol = replace(
            self,
            samples=self.samples if samples is None else samples,
            extractor=extractor or self.extractor,
            resize=resize or (None if extractor else self.resize),
            measures=measures or self.measures,
            unlabelled_extractor=None if extractor else self.unlabelled_extractor,
        )
        if protocol.samples < 2:
            raise InputError(f"a score needs at least 2 samples, not {protocol.samples}")
        return protocol


PROTOCOLS = {
    "quick": EvalProtocol(2_000, "classifier", unlabelled_extractor="rotations"),
    "resnet10k": EvalProtocol(10_000, "resnet56-cifar10"),
    "fid10k": EvalProtocol(10_000, "inception", "tf1-bilinear"),
    "fid50k": EvalProtocol(50_000, "inception", "tf1-bilinear"),
    "clean-fid50k": EvalProtocol(50_000, "inception", "clean-bicubic"),
    "dino50k": EvalProtocol(50_000, "dinov2", "clean-bicubic"),
}
"""All compare with all training images of the data set. Papers call a score by `fid50k` FID."""


def protocol(name: str) -> EvalProtocol:
    """The protocol called `name`.

    Raises: InputError for an unknown name.
    """
    if name not in PROTOCOLS:
        raise InputError(
            f"unknown evaluation protocol {name!r}{did_you_mean(name, PROTOCOLS)} "
            f"(choose one of {', '.join(PROTOCOLS)})"
        )
    return PROTOCOLS[name]
