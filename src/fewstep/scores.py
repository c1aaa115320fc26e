"""`Score`: the measures of one generator, with everything that they depend on."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fewstep import __version__, metrics
from fewstep.errors import InputError
from fewstep.metrics import ExtraMeasure, Measures
from fewstep.ranges import Precision
from fewstep.run_folder import Run


@dataclass(frozen=True)
class Score:
    """Measures of one generator at one number of steps, and everything that they depend on."""

    steps: int
    sampler: str
    evaluations: int
    """Network evaluations per image; guidance counts twice."""
    guidance: float
    """Weight of guidance; 1 means no guidance."""
    guidance_interval: tuple[float, float] | None = field(default=None, kw_only=True)
    """Lowest and highest time of guidance; None for all times."""
    autoguidance: bool = field(default=False, kw_only=True)
    """Whether guidance compares with a worse network, rather than with no condition."""
    weights: str
    """The first 16 digits of the SHA-256 of the weights and the generator's description."""
    number_format: Precision = field(default="f32", kw_only=True)
    """Number format in which the images were generated; features are always computed in f32."""
    samples: int
    """Number of generated images."""
    labels: str
    """How classes were requested: "in turn", "as in the set", or "none"."""
    prompts: str = field(default="none", kw_only=True)
    """Where prompts came from: "captions of the set", "examples of the run", or "none"."""
    extractor: str
    extractor_hash: str
    features: int
    """Number of features per image."""
    resize: str
    """Method by which images were resized for the extractor, or "none"."""
    reference: str
    """Name, size and fingerprint of the set of real images."""
    real: int
    """Number of real images."""
    seed: int
    seconds_per_image: float
    """Median time to generate one image at batch size 1."""
    device: str
    """Hardware on which `seconds_per_image` was measured."""
    measures: Measures

    @property
    def frechet(self) -> float:
        return self.measures.frechet

    @property
    def accuracy(self) -> float | None:
        return self.measures.accuracy

    @property
    def guidance_text(self) -> str:
        """Kind, weight and interval of guidance, such as "guidance 2 at times 0.2 to 0.8"; empty
        for none."""
        if self.guidance == 1:
            return ""
        low, high = self.guidance_interval or (0.0, 1.0)
        times = f" at times {low:g} to {high:g}" if self.guidance_interval else ""
        return f"{'auto' * self.autoguidance}guidance {self.guidance:g}{times}"

    @property
    def sampler_text(self) -> str:
        """The sampler with its guidance, such as "transfer, guidance 2"."""
        return ", ".join(filter(None, (self.sampler, self.guidance_text)))

    @property
    def protocol(self) -> tuple[object, ...]:
        """The settings that must be equal for two scores to be comparable."""
        return self.samples, self.extractor, self.extractor_hash, self.resize, self.reference

    @property
    def standard(self) -> bool:
        """Whether the features are those of the standard Inception weights, as in FID."""
        return metrics.is_standard(self.extractor, self.extractor_hash)

    @property
    def distance(self) -> str:
        """Name of the Fréchet distance: FID with the standard Inception weights only."""
        return metrics.distance_name(self.extractor, self.extractor_hash, self.resize)

    @property
    def caveats(self) -> list[str]:
        """What to know about the score, one sentence each."""
        texts: list[str] = []
        if self.extractor == "rotations":
            texts.append(
                "the features of rotations are those of a small network that was trained without "
                "labels, to recognise how the real images are rotated; the scores are no FID"
            )
        texts += dict.fromkeys(extra.note for extra in self.measures.extra if extra.note)
        count = min(self.samples, self.real)
        if count <= self.features:
            noun = "samples" if count == self.samples else "real images"
            texts.append(
                f"{count:,} {noun} are too few for {self.features:,} features of {self.extractor}: "
                "the Fréchet distance is far too high; the kernel distance has no such bias"
            )
        return texts

    def table(self) -> dict[str, Any]:
        """The score as a flat table, as `fewstep evaluate --json` prints it."""
        table = asdict(self)
        measures = table.pop("measures")
        extra = [measure.table() for measure in self.measures.extra]
        del measures["extra"]
        return table | measures | ({"extra": extra} if extra else {})


def score_from(table: Mapping[str, Any]) -> Score:
    """The score that `Score.table` returned as `table`.

    Raises: InputError for any other table.
    """
    names = {field.name for field in fields(Measures)}
    settings = {key: value for key, value in table.items() if key not in names}
    values = {key: value for key, value in table.items() if key in names}
    try:
        if interval := settings.get("guidance_interval"):
            settings["guidance_interval"] = tuple(interval)
        values["extra"] = tuple(map(ExtraMeasure.from_table, values.get("extra", ())))
        return Score(**settings, measures=Measures(**values))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"this is no score of fewstep {__version__}: {error}") from error


def append_score(address: str | Path, score: Score) -> None:
    """Append the score to scores.jsonl if `address` is a run folder that is not read-only."""
    if Path(address).is_dir():
        with suppress(OSError):
            Run(address).append_score({"version": metrics.VERSION, "score": score.table()})
