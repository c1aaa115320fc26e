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
    """How images are resized for the extractor; None: as its standard says."""
    measures: tuple[str, ...] = ()
    """Names of extra measures, beyond those in `MEASURES`."""

    def with_settings(
        self,
        *,
        samples: int | None = None,
        extractor: str | None = None,
        resize: Resize | None = None,
        measures: tuple[str, ...] = (),
    ) -> "EvalProtocol":
        """This protocol with those settings replaced that are given."""
        protocol = replace(
            self,
            samples=self.samples if samples is None else samples,
            extractor=extractor or self.extractor,
            resize=resize or (None if extractor else self.resize),
            measures=measures or self.measures,
        )
        if protocol.samples < 2:
            raise InputError(f"a score needs at least 2 samples, not {protocol.samples}")
        return protocol


PROTOCOLS = {
    "quick": EvalProtocol(2_000, "classifier"),
    "resnet10k": EvalProtocol(10_000, "resnet56-cifar10"),
    "fid10k": EvalProtocol(10_000, "inception", "tf1-bilinear"),
    "fid50k": EvalProtocol(50_000, "inception", "tf1-bilinear"),
    "clean-fid50k": EvalProtocol(50_000, "inception", "clean-bicubic"),
    "dino50k": EvalProtocol(50_000, "dinov2", "clean-bicubic"),
}
"""Each compares with all training images of the set. `fid50k` is what papers call FID."""


def protocol(name: str) -> EvalProtocol:
    """The protocol of that name.

    Raises: InputError for an unknown name.
    """
    if name not in PROTOCOLS:
        raise InputError(
            f"unknown evaluation protocol {name!r}{did_you_mean(name, PROTOCOLS)} "
            f"(choose one of {', '.join(PROTOCOLS)})"
        )
    return PROTOCOLS[name]
