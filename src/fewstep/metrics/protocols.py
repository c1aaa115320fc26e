"""How a score is taken, by name: scores of different protocols are not comparable."""

from dataclasses import dataclass, replace

from fewstep.errors import InputError, did_you_mean
from fewstep.metrics.resize import Resize


@dataclass(frozen=True)
class EvalProtocol:
    """How many samples are looked at, and through which network."""

    samples: int
    extractor: str
    resize: Resize | None = None
    """How images reach the network's size; None: as its standard says."""

    def changed(
        self, *, samples: int | None, extractor: str | None, resize: Resize | None
    ) -> "EvalProtocol":
        """This one with what is given put in its place."""
        told = replace(
            self,
            samples=self.samples if samples is None else samples,
            extractor=extractor or self.extractor,
            resize=resize or (None if extractor else self.resize),
        )
        if told.samples < 2:
            raise InputError(f"a score takes at least 2 samples, not {told.samples}")
        return told


PROTOCOLS = {
    "quick": EvalProtocol(2_000, "classifier"),
    "resnet10k": EvalProtocol(10_000, "resnet56-cifar10"),
    "fid10k": EvalProtocol(10_000, "inception", "tf1-bilinear"),
    "fid50k": EvalProtocol(50_000, "inception", "tf1-bilinear"),
    "clean-fid50k": EvalProtocol(50_000, "inception", "clean-bicubic"),
    "dino50k": EvalProtocol(50_000, "dinov2", "clean-bicubic"),
}
"""Each measures against all training images of the set. `fid50k` is what papers call FID."""


def protocol(name: str) -> EvalProtocol:
    """The protocol of that name.

    Raises: InputError that names the known ones.
    """
    if name not in PROTOCOLS:
        raise InputError(
            f"there is no protocol {name!r}{did_you_mean(name, PROTOCOLS)}; "
            f"there are: {', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name]
