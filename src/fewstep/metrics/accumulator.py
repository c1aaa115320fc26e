"""Images, batch by batch, into every score there is; the memory does not grow with them."""

import math

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from fewstep.metrics.classes import ClassScore
from fewstep.metrics.coverage import density_coverage, precision_recall
from fewstep.metrics.frechet import Parts, frechet_estimate
from fewstep.metrics.kernel import kernel_distance
from fewstep.metrics.measures import Measures
from fewstep.metrics.reference import Reference

VERSION = 1  # raise it when a measure changes: kept scores of another version are not used
KEPT = 10_000  # rows of features that are kept for the metrics that compare row with row
ASKED = 2_000  # rows that are looked up among all training images


class ScoreAccumulator:
    """Takes `total` images, batch by batch and in order; then tells their measures.

    `cycle` is after how many images their classes repeat.
    """

    def __init__(self, reference: Reference, total: int, *, cycle: int = 1) -> None:
        self.reference = reference
        self.total = total
        dim = reference.moments.mean.numel()
        self.parts = Parts(dim, total, cycle=cycle)
        self.features = torch.empty(min(total, KEPT), dim)
        self.score: ClassScore | None = None
        self.seen = self.right = self.asked = 0

    def update(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None
    ) -> None:
        """Join the images that come next, with the classes that were asked for, if any were."""
        first = 0
        for seen in self.reference.extractor.see(images):
            features = seen.features.cpu()
            self.parts.update(features)
            kept = features[: max(len(self.features) - self.seen, 0)]
            self.features[self.seen : self.seen + len(kept)] = kept
            self.seen += len(features)
            if seen.logits is not None:
                self.score = self.score or ClassScore()
                self.score.update(seen.logits)
                if labels is not None and self.reference.extractor.classifies:
                    mine = labels[first : first + len(features)].to(seen.logits.device)
                    self.right += int((seen.logits.argmax(1) == mine).sum())
                    self.asked += len(mine)
            first += len(features)

    def measures(self) -> Measures:
        """Once all images are there."""
        assert self.seen == self.total, (self.seen, self.total)
        distance = frechet_estimate(self.parts, self.reference.moments)
        return Measures(
            frechet=distance.value,
            frechet_low=distance.low,
            frechet_high=distance.high,
            frechet_infinite=distance.infinite,
            **self._rowwise(),
            class_score=self.score.value if self.score else None,
            accuracy=self.right / self.asked if self.asked else None,
        )

    def _rowwise(self) -> dict[str, float | None]:
        """The measures that compare row with row, of the rows that were kept."""
        real, fake = self.reference.features[:KEPT], self.features
        told: dict[str, float | None] = {}
        if len(real) > 1:
            kernel = kernel_distance(fake, real)
            told = {"kernel": kernel.value, "copies": self._copies()}
            if math.isfinite(kernel.low):
                told |= {"kernel_low": kernel.low, "kernel_high": kernel.high}
        # radii shrink as rows are added, so both sets have the same number
        even = min(len(real), len(fake))
        if even > 5:
            precise = precision_recall(real[:even], fake[:even])
            dense = density_coverage(real[:even], fake[:even])
            told |= {**precise._asdict(), **dense._asdict()}
        return told

    def _copies(self) -> float | None:
        if math.isnan(self.reference.copy_radius):
            return None
        near = self.reference.nearest(self.features[:ASKED]).distances[:, 0]
        return (near <= self.reference.copy_radius).double().mean().item()
