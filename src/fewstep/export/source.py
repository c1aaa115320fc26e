"""The generator to export, with everything that its files say of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep import __version__, runs
from fewstep.abilities import with_guidance
from fewstep.autoguidance import weak_network
from fewstep.backbones import without_augmentation
from fewstep.errors import InputError
from fewstep.export.precision import round_weights, rounding_error
from fewstep.finite import nonfinite_weight
from fewstep.generator import Generator
from fewstep.guidance import Guided, guidance_interval, unguided
from fewstep.run_folder import Run
from fewstep.runs import Weights
from fewstep.sampler_choices import with_sampler_choices
from fewstep.stored_weights import Dtype


@dataclass(frozen=True)
class Source:
    """A generator to export, and what is known of it."""

    name: str
    """Name of the run, for titles."""
    generator: Generator
    """With the sampler and guidance to export, and with weights that are rounded to `dtype`."""
    steps: tuple[int, ...]
    """Numbers of sampling steps; the first is the default."""
    weights_hash: str
    """SHA-256 of the weights and the description, before they were rounded."""
    dtype: Dtype = "f32"
    """Type in which weights are stored; programs compute in float32."""
    recipe: Mapping[str, Any] | None = None
    """The recipe's table; None for checkpoints of other projects."""
    pins: Mapping[str, str] = field(default_factory=dict[str, str])
    """Hashes of the data and weights that training used."""
    scores: Sequence[Mapping[str, Any]] = ()
    """Tables of `Score`, of the weights before they were rounded."""
    rounded_scores: Sequence[Mapping[str, Any]] = ()
    """Tables of `Score` of the rounded weights; empty if they were not measured."""
    license: str = ""
    """Licence of the weights; empty if it is unknown."""
    rounding: Mapping[str, float] = field(default_factory=dict[str, float])
    """Largest and root-mean-square difference of images that rounding the weights makes."""

    def about(self) -> dict[str, Any]:
        """What the files say of their origin, as JSON values."""
        spec = self.generator.spec
        return {
            "name": self.name,
            "fewstep": __version__,
            "weights": self.weights_hash,
            "dtype": self.dtype,
            "shape": list(spec.shape),
            "classes": spec.classes,
            "class_names": list(spec.class_names),
            "prompts": list(spec.prompts),
            "steps": list(self.steps),
            "recipe": None if self.recipe is None else _without_folders(self.recipe),
            "pins": dict(self.pins),
            "scores": [dict(score) for score in self.scores],
            "rounded_scores": [dict(score) for score in self.rounded_scores],
            "license": self.license,
            "rounding": dict(self.rounding),
        }


def load_source(
    address: str | Path,
    *,
    steps: Sequence[int] = (),
    sampler: str | None = None,
    grid: str | None = None,
    guidance: float = 1.0,
    interval: Sequence[float] | None = None,
    negative: str = "",
    weights: Weights = "ema",
    dtype: Dtype = "f32",
    license: str = "",
) -> Source:
    """Load the generator at an address, to export it.

    By default `steps` are those of `runs.default_steps`.

    Raises: InputError as `runs.load`, for fewer than 1 step, or for a sampler, grid or guidance
    that the generator cannot have.
    """
    if steps and min(steps) < 1:
        raise InputError(f"a sample needs at least 1 step, not {min(steps)} steps")
    generator = runs.load(address, weights=weights)
    _check_finite(generator)
    note = runs.describe(address, weights=weights)
    recipe = note.get("recipe")
    generator = with_guidance(generator, guidance, recipe, interval=interval, negative=negative)
    generator = with_sampler_choices(generator, recipe, sampler=sampler, grid=grid)
    counts = steps or runs.default_steps(generator, recipe)
    steps = tuple(dict.fromkeys(generator.nearest(count) for count in counts))
    hash = runs.weights_hash(generator)
    generator = _without_augmentation(generator)
    rounded, rounding = generator, {}
    if dtype != "f32":
        rounded = round_weights(generator, dtype)
        rounding = rounding_error(generator, rounded, steps[0])
    return Source(
        name=_name(address),
        generator=rounded,
        steps=steps,
        weights_hash=hash,
        dtype=dtype,
        recipe=recipe,
        pins=note.get("pins", {}),
        scores=_scores(address, note, hash),
        license=license or note.get("license", ""),
        rounding=rounding,
    )


def check_plain_guidance(source: Source, target: str) -> None:
    """Raise InputError for guidance that a `target` cannot have: it has a weight alone."""
    backbone = source.generator.denoiser.backbone
    if guidance_interval(backbone) or weak_network(backbone):
        kind = "autoguidance" if weak_network(backbone) else "an interval of guidance"
        raise InputError(f"{target} cannot have {kind}: leave it out, or choose --to onnx or torch")


def check_scorable(source: Source) -> None:
    """Raise InputError if the set that a generator was trained on is not known."""
    if not source.recipe:
        raise InputError(
            f"--score needs the data set of a recipe, which {source.name} does not contain: leave "
            "it out, and use `fewstep evaluate`, which has --data"
        )


def _name(address: str | Path) -> str:
    """The name of the file or folder at an address."""
    path = Path(address)
    path = path.resolve() if path.exists() else Path(str(address).partition("?")[0])
    return path.name


def _without_augmentation(generator: Generator) -> Generator:
    """The generator without the input for labels of augmentation, which are 0 in samples."""
    guided = generator.denoiser.backbone
    network = unguided(guided)
    plain = without_augmentation(network)
    if plain is network:
        return generator
    backbone = guided.with_backbone(plain) if isinstance(guided, Guided) else plain
    return generator.replace(denoiser=generator.denoiser.replace(backbone=backbone))


def _check_finite(generator: Generator) -> None:
    if name := nonfinite_weight(generator):
        raise InputError(
            f"{name} has weights that are infinite or not numbers, as after training that "
            "diverged: export other --weights, or train again"
        )


def _scores(address: str | Path, note: Mapping[str, Any], hash: str) -> list[dict[str, Any]]:
    """The scores of exactly these weights in a run folder, the latest of each number of steps, or
    in a weights file."""
    lines = Run(address).scores() if Path(address).is_dir() else []
    scores = [*note.get("scores", ()), *(line["score"] for line in lines if "score" in line)]
    keys = ("steps", "extractor", "samples")
    latest = {
        tuple(score[key] for key in keys): score
        for score in scores
        if {"weights", *keys} <= score.keys() and hash.startswith(score["weights"])
    }
    return list(latest.values())


def _without_folders(value: Any) -> Any:
    """A recipe's table with absolute paths cut to their names: exports are for others to read."""
    if isinstance(value, Mapping):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(item) for item in value]
    is_path = isinstance(value, str) and Path(value).is_absolute()
    return Path(value).name if is_path else value
