"""A score: one generator's measures, with all that they depend on, and where they are kept."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fewstep import metrics
from fewstep.metrics import Measures
from fewstep.runs import Run


@dataclass(frozen=True)
class Score:
    """One generator at one number of steps, and all that the numbers depend on."""

    steps: int
    sampler: str
    evaluations: int
    """Calls of the network for one image; guidance counts twice."""
    guidance: float
    """Weight of classifier-free guidance; 1: none."""
    weights: str
    """Which weights: the first digits of their hash, which covers the way of sampling too."""
    samples: int
    labels: str
    """Which classes were asked for: "in turn", "as in the set", or "none"."""
    extractor: str
    extractor_hash: str
    features: int
    """How many numbers the extractor makes of an image."""
    resize: str
    """How images were brought to the extractor's size."""
    reference: str
    """The real images: name of the set, their number and fingerprint."""
    real: int
    """How many there are."""
    seed: int
    seconds_per_image: float
    """Batch of 1, median."""
    device: str
    """What `seconds_per_image` was measured on."""
    measures: Measures

    @property
    def frechet(self) -> float:
        return self.measures.frechet

    @property
    def accuracy(self) -> float | None:
        return self.measures.accuracy

    @property
    def protocol(self) -> tuple[object, ...]:
        """What must be equal for two scores to be compared."""
        return self.samples, self.extractor, self.extractor_hash, self.resize, self.reference

    @property
    def standard(self) -> bool:
        """Whether the features are those of the standard Inception weights, as in FID."""
        return (self.extractor, self.extractor_hash) == ("inception", metrics.INCEPTION_HASH)

    @property
    def distance(self) -> str:
        """Name of the Fréchet distance: FID with the standard Inception weights only."""
        if not self.standard:
            return f"Fréchet distance ({self.extractor})"
        return "FID" if self.resize.startswith("tf1-bilinear") else f"FID ({self.resize})"

    @property
    def caveats(self) -> list[str]:
        """What a reader must know before believing the numbers."""
        few = min(self.samples, self.real)
        if few > self.features:
            return []
        whose = "samples" if few == self.samples else "real images"
        return [
            f"{few:,} {whose} span fewer directions than {self.extractor} has features "
            f"({self.features:,}): the Fréchet distance is far too high; the kernel distance is not"
        ]

    def table(self) -> dict[str, Any]:
        """As `fewstep evaluate --json` prints it: one level, the measures last."""
        told = asdict(self)
        return told | told.pop("measures")


def score_from(table: Mapping[str, Any]) -> Score:
    """What `Score.table` told."""
    names = {field.name for field in fields(Measures)}
    own = {key: value for key, value in table.items() if key not in names}
    return Score(**own, measures=Measures(**{k: v for k, v in table.items() if k in names}))


def append_score(address: str | Path, score: Score) -> None:
    """Keep it in the run's folder, if it is one that may be written to."""
    if Path(address).is_dir():
        with suppress(OSError):
            Run(address).append_score({"version": metrics.VERSION, "score": score.table()})
