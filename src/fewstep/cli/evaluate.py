"""`fewstep evaluate RUN [--steps 1,2,4] [--protocol fid50k] [--json]`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import tyro

from fewstep.cli import console
from fewstep.errors import InputError

if TYPE_CHECKING:
    from fewstep.data import ImageSet
    from fewstep.evaluation import Evaluator
    from fewstep.generator import Generator
    from fewstep.scores import Score


@dataclass(frozen=True)
class Options:
    """Score a run against real images, at chosen numbers of steps."""

    run: tyro.conf.Positional[str]
    """A run folder, a weights file, diffusers:FOLDER or diffusers:HUB_NAME."""
    steps: str = "1,2,4"
    """Step counts, with commas."""
    protocol: str = "quick"
    """quick (2,000 samples, a small classifier), resnet10k, fid10k, fid50k, clean-fid50k, dino50k;
    the next three change it."""
    samples: int | None = None
    """Images to generate for each score."""
    extractor: str | None = None
    """classifier, pixels, inception, dinov2, squeezenet or resnet56-cifar10."""
    resize: Literal["tf1-bilinear", "clean-bicubic"] | None = None
    """How images reach the extractor's size; by default as its standard says."""
    sampler: str | None = None
    """transfer, ancestral, renoise, heun, multistep or corrector, or a circuit's ring; by default
    the run's own."""
    weights: Literal["ema", "raw", "best"] = "ema"
    """Averaged weights of the last step, raw ones, or averaged ones of the best evaluation."""
    data: str | None = None
    """The reference set's name, brought to the run's size; by default the set that it was trained
    on. Other people's checkpoints do not tell theirs."""
    guidance: float = 1.0
    """Weight of classifier-free guidance; 1: none."""
    seed: int = 0
    """Of the noise."""
    straightness: bool = False
    """Measure instead how straight the paths from noise to image are, 0 for straight lines, by 32
    Euler steps under Flow, whatever --steps and --sampler say."""
    json: bool = False
    """Print the scores as a JSON list."""


def main(argv: Sequence[str]) -> int:
    """Score and print; 0 when done."""
    told = console.options(Options, "evaluate", argv)
    from fewstep import metrics, runs
    from fewstep.distributed import device
    from fewstep.evaluation import Evaluator
    from fewstep.sampling import renamed_step

    wanted = console.counts(told.steps)
    protocol = metrics.protocol(told.protocol).changed(
        samples=told.samples, extractor=told.extractor, resize=told.resize
    )
    generator = runs.load(told.run, weights=told.weights)
    if told.guidance != 1:
        generator = generator.with_guidance(told.guidance)
    if told.sampler:
        generator = generator.with_sampler(step=renamed_step(generator.step, told.sampler))
    generator = generator.to(device())
    if told.straightness:
        return _straightness(generator, told)
    images = reference(told.run, told.data, told.weights, shape=generator.spec.shape)
    evaluator = prepared(Evaluator(images, protocol))
    scores = [
        measured(evaluator, generator, told.run, steps, told.seed)
        for steps in dict.fromkeys(map(generator.nearest, wanted))
    ]
    if told.json:
        print(json.dumps([score.table() for score in scores], indent=2))
    else:
        show([(told.run, score) for score in scores])
    return 0


def prepared(evaluator: "Evaluator") -> "Evaluator":
    """The evaluator with its real images seen, under a progress bar."""
    from fewstep.evaluation import exhaust

    total = len(evaluator.images)
    with console.bar(f"{evaluator.images.name}, real", total) as bar:
        exhaust(evaluator.prepare(), bar)
    return evaluator


def measured(
    evaluator: "Evaluator", generator: "Generator", address: str, steps: int, seed: int = 0
) -> "Score":
    """A score under a progress bar, or what was kept of it in the run's folder."""
    from fewstep.evaluation import cached_score, exhaust
    from fewstep.scores import append_score

    kept = cached_score(address, evaluator, generator, steps=steps, seed=seed)
    if kept:
        return kept
    with console.bar(f"{address}, {steps} steps", evaluator.protocol.samples) as bar:
        score = exhaust(evaluator.iter_score(generator, steps=steps, seed=seed), bar)
    append_score(address, score)
    return score


def _straightness(generator: "Generator", told: Options) -> int:
    from fewstep.evaluation import straightness

    samples = told.samples or 500
    share = straightness(generator, samples=samples, seed=told.seed)
    if told.json:
        print(json.dumps({"straightness": share, "samples": samples, "seed": told.seed}))
    else:
        console.out.print(
            f"{told.run}: straightness {share:.4f} (0: straight lines; a share of their squared "
            f"length), {samples} samples, seed {told.seed}, 32 Euler steps"
        )
    return 0


def reference(
    address: str,
    name: str | None,
    weights: Literal["ema", "raw", "best"] = "ema",
    *,
    shape: tuple[int, ...] = (),
) -> "ImageSet":
    """The set to measure against: the one named, at the size of `shape`, or the run's own."""
    from fewstep import data, runs
    from fewstep.recipe import from_table
    from fewstep.runner import read_data

    if name:
        return data.load(name, size=shape[-1] if len(shape) == 3 else None)
    recipe = runs.describe(address, weights=weights).get("recipe")
    if recipe is None:
        raise InputError(f"{address} does not say what it was trained on; give --data NAME")
    return read_data(from_table(recipe))


def show(scores: Iterable[tuple[str, "Score"]]) -> None:
    """Tables of scores, one for each protocol, with what they depend on below."""
    groups: dict[tuple[object, ...], list[tuple[str, Score]]] = {}
    for name, score in scores:
        groups.setdefault(score.protocol, []).append((name, score))
    for rows in groups.values():
        _table(rows)


def _table(rows: Sequence[tuple[str, "Score"]]) -> None:
    from rich.table import Table

    from fewstep.metrics import MEASURES

    first = rows[0][1]
    texts = {m: [m.text(score.measures) for _, score in rows] for m in MEASURES[1:]}
    columns = {m: column for m, column in texts.items() if any(column)}
    table = Table(box=None, pad_edge=False)
    table.add_column("Run")
    table.add_column("Steps", justify="right")
    table.add_column("Sampler")
    table.add_column(first.distance, justify="right")
    names = [m.name(standard=first.standard) for m in columns]
    for heading in (*names, "Evaluations", "ms/image"):
        table.add_column(heading, justify="right")
    notes: dict[str, None] = {}
    for i, (name, score) in enumerate(rows):
        m = score.measures
        spread = f" ± {m.frechet_high - m.frechet:.2f}" if m.frechet_high is not None else ""
        table.add_row(
            name,
            str(score.steps),
            score.sampler,
            f"{m.frechet:.2f}{spread}",
            *(column[i] or "" for column in columns.values()),
            str(score.evaluations),
            f"{1000 * score.seconds_per_image:.2f}",
        )
        notes[
            f"{score.extractor} ({score.extractor_hash[:12]}), resize {score.resize}, "
            f"{score.samples:,} samples, seed {score.seed}, {_exceptions(score)}"
            f"against {score.reference}; ± is the 95 % interval; times on {score.device}"
        ] = None
        notes |= dict.fromkeys(score.caveats)
    console.whole(table)
    for line in notes:
        console.out.print(line, style="dim")


def _exceptions(score: "Score") -> str:
    """What differs from the usual way of drawing samples; empty if nothing does."""
    classes = "" if score.labels != "as in the set" else "classes as often as in the set, "
    return classes if score.guidance == 1 else f"{classes}guidance {score.guidance:g}, "
