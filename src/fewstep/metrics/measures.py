"""The measures of a set of images: their values, and how each is named, explained and printed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep import plugins
from fewstep.errors import InputError
from fewstep.formatting import number, percent
from fewstep.metrics.extractors.base import ReferenceImages


@dataclass(frozen=True)
class Measures:
    """Values of all measures for a set of images against a reference, in one extractor's features.

    `MEASURES` explains each of them. A value is None if it was not computed: there are too few
    samples for it, or the extractor has no classes.
    """

    frechet: float
    frechet_low: float | None = None
    """Lower end of the 95 % interval: as many new samples would give a value in it."""
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
    extra: tuple["ExtraMeasure", ...] = ()
    """Values of the protocol's extra measures, which are not in `MEASURES`."""


@dataclass(frozen=True)
class Measure:
    """One measure: its name, explanation and format, and, for extra measures, its function.

    To add a measure, set `compute`, and list its address in a protocol, such as
    `my_package.my_module:MY_MEASURE`.
    """

    key: str
    """Field of `Measures`, or the key of an extra measure."""
    label: str
    direction: Literal["lower", "higher", "neither"]
    """Which values are better."""
    meaning: str
    """One or two sentences for a reader who does not know the measure."""
    format: Literal["number", "percent"] = "number"
    inception_label: str | None = None
    """Its name in papers, such as FID, with features of the standard Inception weights."""
    compute: Callable[[Tensor, Tensor], float] | None = field(default=None, compare=False)
    """Computes the value from features (n, d) of real images and (m, d) of samples, float32 on
    the CPU. None for the measures in `MEASURES`, which `ScoreAccumulator` computes."""

    @property
    def arrow(self) -> str:
        """↓ if lower values are better, ↑ if higher values are, else empty."""
        return {"lower": "↓", "higher": "↑", "neither": ""}[self.direction]

    def name(self, *, standard: bool) -> str:
        """The label; with `standard` Inception features, the name used in papers."""
        return (standard and self.inception_label) or self.label

    def value(self, measures: Measures) -> float | None:
        """The value in `measures`; None if it was not computed."""
        extra = {e.measure.key: e.value for e in measures.extra}
        return extra[self.key] if self.key in extra else getattr(measures, self.key, None)

    def interval(self, measures: Measures) -> tuple[float | None, float | None]:
        """Lower and upper end of the 95 % interval; None if there is none."""
        for extra in measures.extra:
            if extra.measure.key == self.key:
                return extra.low, extra.high
        low, high = f"{self.key}_low", f"{self.key}_high"
        return getattr(measures, low, None), getattr(measures, high, None)

    def text(self, measures: Measures) -> str | None:
        """The value as printed text; None if it was not computed."""
        value = self.value(measures)
        if value is None:
            return None
        return percent(value) if self.format == "percent" else number(value)


@dataclass(frozen=True)
class ExtraMeasure:
    """A measure beyond `MEASURES` with its value, so that reports need not import its code."""

    measure: Measure
    value: float
    low: float | None = None
    """Lower end of the 95 % interval; None if there is none."""
    high: float | None = None
    note: str = ""
    """What to know about the value, in one sentence."""

    def table(self) -> dict[str, Any]:
        """The entry in a score's JSON table; `from_table` reads it."""
        m = self.measure
        return {
            "key": m.key,
            "label": m.label,
            "direction": m.direction,
            "meaning": m.meaning,
            "format": m.format,
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "note": self.note,
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "ExtraMeasure":
        """Read what `table` returned."""
        names = {field.name for field in fields(cls)}
        values = {key: value for key, value in table.items() if key in names}
        return cls(Measure(**{k: v for k, v in table.items() if k not in names}), **values)


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


def computed_measures(rows: Sequence[Measures]) -> list[Measure]:
    """The measures that were computed for any of the rows, in the order in which to show them."""
    extra = {e.measure.key: e.measure for row in rows for e in row.extra}
    measures = (*MEASURES, *extra.values())
    return [m for m in measures if any(m.value(row) is not None for row in rows)]


class PromptMeasure(ABC):
    """A measure of how well images fit their prompts, which may have several values.

    To add one, list the address of a subclass in a protocol, as for a `Measure`.
    """

    key: ClassVar[str]
    """The key of the first value."""

    @classmethod
    @abstractmethod
    def create(
        cls,
        images: ReferenceImages,
        *,
        prompted: ReferenceImages | None = None,
        cache: Path | None = None,
    ) -> "PromptMeasure":
        """The measure of samples that are compared with `images`.

        Their prompts are the captions of `prompted`, or of `images` if it is None. `cache` is a
        folder for trained weights.

        Raises: InputError if it cannot be computed for these images.
        """

    @abstractmethod
    def rows(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float[Tensor, "n k"]:
        """k numbers for each image, on the CPU. They depend on the image and its prompt alone, so
        that processes can share the images."""

    @abstractmethod
    def values(self, rows: Float[Tensor, "n k"]) -> tuple[ExtraMeasure, ...]:
        """The values of the measure for all images."""


def find_measure(name: str) -> Measure | type[PromptMeasure]:
    """The extra measure with a registered name, or at an address `package.module:MEASURE`.

    Raises: InputError if the name is unknown, or its object is neither a `Measure` with `compute`
    nor a subclass of `PromptMeasure`.
    """
    measure = plugins.resolve("measure", name)
    is_class = isinstance(measure, type) and issubclass(measure, PromptMeasure)
    if not is_class and (not isinstance(measure, Measure) or measure.compute is None):
        raise InputError(f"{name} is not a metrics.Measure with `compute`, or a PromptMeasure")
    if any(measure.key == other.key for other in MEASURES):
        raise InputError(f"the key {measure.key!r} of {name} is taken; choose another")
    return measure
