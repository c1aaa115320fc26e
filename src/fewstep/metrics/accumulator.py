"""`ScoreAccumulator` computes all measures of images that arrive in batches, in bounded memory."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from fewstep.metrics.distances.class_score import ClassScore
from fewstep.metrics.distances.coverage import density_coverage, precision_recall
from fewstep.metrics.distances.frechet import MomentBlocks, frechet_estimate
from fewstep.metrics.distances.kernel import kernel_distance
from fewstep.metrics.measures import ExtraMeasure, Measure, Measures, PromptMeasure
from fewstep.metrics.reference import Reference

VERSION = 2  # increase it when a measure changes: cached scores of another version are not used
MAX_ROWS = 10_000  # rows of features that are stored, for the measures that compare rows
COPY_ROWS = 2_000  # rows whose nearest training images are computed


@dataclass(frozen=True)
class BatchOutput:
    """What the measures need of some images."""

    features: Float[Tensor, "n d"]
    logits: Float[Tensor, "n k"] | None = None
    labels: Int64[Tensor, " n"] | None = None
    """Requested classes."""
    prompt_rows: tuple[Tensor, ...] = ()
    """The rows of each prompt measure."""


class ScoreAccumulator:
    """Computes the measures of `total` images that arrive in order, in batches of any size.

    `cycle` is the number of images after which their classes repeat. `extra` are measures beyond
    `MEASURES`, and `prompt_measures` those that also read the prompts of the images.
    """

    def __init__(
        self,
        reference: Reference,
        total: int,
        *,
        cycle: int = 1,
        extra: Sequence[Measure] = (),
        prompt_measures: Sequence[PromptMeasure] = (),
    ) -> None:
        self.reference = reference
        self.extra = extra
        self.prompt_measures = prompt_measures
        self.prompt_rows: list[list[Tensor]] = [[] for _ in prompt_measures]
        self.total = total
        dim = reference.moments.mean.numel()
        self.blocks = MomentBlocks(dim, total, cycle=cycle)
        self.features = torch.empty(min(total, MAX_ROWS), dim)
        self.class_score: ClassScore | None = None
        self.count = self.correct = self.label_count = 0

    def update(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"] | None = None,
        prompts: Sequence[str] | None = None,
    ) -> None:
        """Add the next images; `labels` are the requested classes of conditional samples."""
        for output in self.outputs(images, labels, prompts):
            self.add(output)

    def outputs(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"] | None = None,
        prompts: Sequence[str] | None = None,
    ) -> Iterator["BatchOutput"]:
        """Yield what `add` takes for images, whichever their place; tensors are on the CPU.

        Processes that share the images compute these, and one of them adds all in order.
        """
        start = 0
        for features, logits in self.reference.extractor.iter_outputs(images):
            stop = start + len(features)
            rows: tuple[Tensor, ...] = ()
            if prompts is not None:
                batch = images[start:stop], prompts[start:stop]
                rows = tuple(measure.rows(*batch) for measure in self.prompt_measures)
            yield BatchOutput(
                features.cpu(),
                None if logits is None else logits.cpu(),
                None if labels is None else labels[start:stop].cpu(),
                rows,
            )
            start = stop

    def add(self, output: "BatchOutput") -> None:
        """Add what `outputs` computed for the next images."""
        features, logits, labels = output.features, output.logits, output.labels
        self.blocks.update(features)
        rows = features[: max(len(self.features) - self.count, 0)]
        self.features[self.count : self.count + len(rows)] = rows
        self.count += len(features)
        for all_rows, part in zip(self.prompt_rows, output.prompt_rows, strict=False):
            all_rows.append(part)
        if logits is None:
            return
        self.class_score = self.class_score or ClassScore()
        self.class_score.update(logits)
        if labels is not None and self.reference.extractor.classifies:
            self.correct += int((logits.argmax(1) == labels).sum())
            self.label_count += len(labels)

    def measures(self) -> Measures:
        """The measures. Call it after all `total` images were added."""
        assert self.count == self.total, (self.count, self.total)
        distance = frechet_estimate(self.blocks, self.reference.moments)
        return Measures(
            frechet=distance.value,
            frechet_low=distance.low,
            frechet_high=distance.high,
            frechet_infinite=distance.infinite,
            **self._row_measures(),
            class_score=self.class_score.value if self.class_score else None,
            accuracy=self.correct / self.label_count if self.label_count else None,
            extra=(*map(self._compute, self.extra), *self._prompt_values()),
        )

    def _compute(self, measure: Measure) -> ExtraMeasure:
        assert measure.compute
        value = measure.compute(self.reference.features[:MAX_ROWS], self.features)
        return ExtraMeasure(measure, float(value))

    def _prompt_values(self) -> Iterator[ExtraMeasure]:
        for measure, rows in zip(self.prompt_measures, self.prompt_rows, strict=True):
            if rows:
                yield from measure.values(torch.cat(rows))

    def _row_measures(self) -> dict[str, float | None]:
        """The measures that compare rows, from the first rows of both sets."""
        real, fake = self.reference.features[:MAX_ROWS], self.features
        values: dict[str, float | None] = {}
        if len(real) > 1:
            kernel = kernel_distance(fake, real)
            values = {"kernel": kernel.value, "copies": self._copies()}
            if math.isfinite(kernel.low):
                values |= {"kernel_low": kernel.low, "kernel_high": kernel.high}
        # the radii depend on the number of rows, so both sets must have the same number
        count = min(len(real), len(fake))
        if count > 5:
            values |= precision_recall(real[:count], fake[:count])._asdict()
            values |= density_coverage(real[:count], fake[:count])._asdict()
        return values

    def _copies(self) -> float | None:
        if math.isnan(self.reference.copy_radius):
            return None
        distances = self.reference.nearest(self.features[:COPY_ROWS]).distances[:, 0]
        return (distances <= self.reference.copy_radius).double().mean().item()
