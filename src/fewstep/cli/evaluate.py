"""`fewstep evaluate RUN [--steps 1,2,4] [--json]`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from fewstep.cli import console
from fewstep.errors import InputError

if TYPE_CHECKING:
    from fewstep.data import ImageSet
    from fewstep.evaluation import Score
    from fewstep.generator import Generator


@dataclass(frozen=True)
class Options:
    """Score a run against real images, at chosen numbers of steps."""

    run: tyro.conf.Positional[str]
    """A run folder, a weights file or an address."""
    steps: str = "1,2,4"
    """Step counts, with commas."""
    sampler: str | None = None
    """transfer, ancestral, renoise, heun, multistep or corrector; by default the run's own."""
    samples: int = 2000
    """Images to generate for each score."""
    extractor: str = "classifier"
    """Features of the Fréchet distance: classifier or pixels."""
    data: str | None = None
    """The reference set's name; by default the set that the run was trained on."""
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
    from fewstep import runs
    from fewstep.distributed import device
    from fewstep.evaluation import Yardstick
    from fewstep.sampling import named_step

    wanted = console.counts(told.steps)
    generator = runs.load(told.run)
    if told.guidance != 1:
        generator = generator.guided(told.guidance)
    if told.sampler:
        generator = generator.sampled(step=named_step(told.sampler))
    generator = generator.to(device())
    if told.straightness:
        return _straightness(generator, told)
    yardstick = Yardstick(reference(told.run, told.data), told.extractor)
    scores = [
        yardstick.score(generator, steps=steps, samples=told.samples, seed=told.seed)
        for steps in dict.fromkeys(map(generator.nearest, wanted))
    ]
    if told.json:
        print(json.dumps([score.table() for score in scores], indent=2))
    else:
        show([(told.run, score) for score in scores])
    return 0


def _straightness(generator: "Generator", told: Options) -> int:
    from fewstep.evaluation import straightness

    share = straightness(generator, samples=told.samples, seed=told.seed)
    if told.json:
        print(json.dumps({"straightness": share, "samples": told.samples, "seed": told.seed}))
    else:
        console.out.print(
            f"{told.run}: straightness {share:.4f} (0: straight lines; a share of their squared "
            f"length), {told.samples} samples, seed {told.seed}, 32 Euler steps"
        )
    return 0


def reference(address: str, name: str | None) -> "ImageSet":
    """The set to measure against: the one named, or the run's own."""
    from fewstep import data, runs
    from fewstep.experiment import read_data
    from fewstep.recipe import from_table

    if name:
        return data.load(name)
    recipe = runs.describe(address).get("recipe")
    if recipe is None:
        raise InputError(f"{address} does not say what it was trained on; give --data NAME")
    return read_data(from_table(recipe))


def show(scores: Iterable[tuple[str, "Score"]]) -> None:
    """A table of scores, with what they depend on below it."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("run", "steps", "sampler", "evaluations", "Fréchet", "accuracy", "ms/image"):
        table.add_column(heading, justify="left" if heading in ("run", "sampler") else "right")
    below: dict[str, None] = {}
    for name, score in scores:
        accuracy = "" if score.accuracy is None else f"{100 * score.accuracy:.1f} %"
        table.add_row(
            name,
            str(score.steps),
            score.sampler,
            str(score.evaluations),
            f"{score.frechet:.2f}",
            accuracy,
            f"{1000 * score.seconds_per_image:.2f}",
        )
        below[
            f"Fréchet distance in the features of {score.extractor} ({score.extractor_hash[:12]}), "
            f"{score.samples} samples, seed {score.seed}, against {score.reference}"
        ] = None
    console.whole(table)
    for line in below:
        console.out.print(line, style="dim")
