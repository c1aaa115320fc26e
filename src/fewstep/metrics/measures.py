"""The measures of a set of images: their values, and how each is named, explained and printed."""

from dataclasses import dataclass
from typing import Literal

from fewstep.formatting import number, percent


@dataclass(frozen=True)
class Measures:
    """Values of all measures for a set of images against a reference, in one extractor's features.

    `MEASURES` explains each of them. A value is None if it was not computed: there are too few
    samples for it, or the extractor has no classes.
    """

    frechet: float
    frechet_low: float | None = None
    """Lower end of the 95 % interval, in which the value of as many other samples would lie."""
    frechet_high: float | None = None
    frechet_infinite: float | None = None
    kernel: float | None = None
    kernel_low: float | None = None
    kernel_high: float | None = None
    class_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    accuracy: float | None = None
    copies: float | None = None


@dataclass(frozen=True)
class Measure:
    """One measure: how it is named, explained and printed."""

    key: str
    """Field of `Measures`, and key in the JSON table of a score."""
    label: str
    direction: Literal["lower", "higher", "neither"]
    """Which values are better."""
    meaning: str
    """One or two sentences for a reader who does not know the measure."""
    format: Literal["number", "percent"] = "number"
    inception_label: str | None = None
    """Name that the literature uses with the standard Inception weights, if it has one."""

    @property
    def arrow(self) -> str:
        """↓ if lower values are better, ↑ if higher values are, else empty."""
        return {"lower": "↓", "higher": "↑", "neither": ""}[self.direction]

    def name(self, *, standard: bool) -> str:
        """The label; with `standard` Inception features, the name of the literature."""
        return (standard and self.inception_label) or self.label

    def value(self, measures: Measures) -> float | None:
        return getattr(measures, self.key)

    def interval(self, measures: Measures) -> tuple[float | None, float | None]:
        """Ends of the 95 % interval, None where there is none."""
        low, high = f"{self.key}_low", f"{self.key}_high"
        return getattr(measures, low, None), getattr(measures, high, None)

    def text(self, measures: Measures) -> str | None:
        """The value as it is printed; None if it was not computed."""
        value = self.value(measures)
        if value is None:
            return None
        return percent(value) if self.format == "percent" else number(value)


MEASURES = (
    Measure(
        "frechet",
        "Fréchet distance",
        "lower",
        "Distance between two Gaussians with the means and covariances of the features; 0 for "
        "equal sets. Few samples make it too high.",
        inception_label="FID",
    ),
    Measure(
        "frechet_infinite",
        "Extrapolated distance",
        "lower",
        "The Fréchet distance extrapolated to infinitely many samples, which removes the bias of "
        "few samples. 0 for equal sets.",
        inception_label="Extrapolated FID",
    ),
    Measure(
        "kernel",
        "Kernel distance",
        "lower",
        "Squared maximum mean discrepancy of the features with a cubic kernel. It has no bias "
        "from few samples. About 0, or slightly negative, for equal sets.",
        inception_label="KID",
    ),
    Measure(
        "class_score",
        "Class score",
        "higher",
        "How confident the network is of each sample's class, times how evenly the classes occur; "
        "from 1 to the number of classes.",
        inception_label="Inception Score",
    ),
    Measure(
        "precision",
        "Precision",
        "higher",
        "Share of the samples that lie among the real images; 0 to 1.",
    ),
    Measure(
        "recall",
        "Recall",
        "higher",
        "Share of the real images that lie among the samples; 0 to 1.",
    ),
    Measure(
        "density",
        "Density",
        "higher",
        "How densely real images surround the samples: 1 for equal sets; above 1 if the samples "
        "crowd where real images are dense.",
    ),
    Measure(
        "coverage",
        "Coverage",
        "higher",
        "Share of the real images with a sample beside them; 0 to 1.",
    ),
    Measure(
        "accuracy",
        "Accuracy",
        "higher",
        "Share of the class-conditional samples that the network assigns to the requested class.",
        format="percent",
    ),
    Measure(
        "copies",
        "Copies",
        "neither",
        "Share of the samples that are as near to a training image as 1 % of the training images "
        "are to another one. New images give about 1 %; much more means memorisation.",
        format="percent",
    ),
)
"""All measures, in the order in which tables show them."""
