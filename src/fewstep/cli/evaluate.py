"""`fewstep evaluate RUN [--steps 1,2,4] [--protocol fid50k] [--json]`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fewstep.cli import console
from fewstep.cli.guidance import GuidanceOptions
from fewstep.cli.likelihood import LikelihoodOptions, evaluate_likelihood
from fewstep.ranges import Precision, Samples, SampleSeed, SamplingSteps

if TYPE_CHECKING:
    from fewstep.generator import Generator
    from fewstep.loading import LoadedRun
    from fewstep.metrics import EvalProtocol
    from fewstep.scores import Score


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """Options of how scores are measured."""

    protocol: str = "quick"
    """Evaluation protocol: quick (2,000 samples, a small classifier, or a network that is trained
    without labels for sets without classes), resnet10k, fid10k, fid50k, clean-fid50k or dino50k.
    The next options change its settings."""
    samples: Samples | None = None
    """Images to generate for each score."""
    extractor: Annotated[
        str | None, console.names_option("extractor", "Network of the features")
    ] = None
    resize: Literal["tf1-bilinear", "clean-bicubic"] | None = None
    """How images are resized for the extractor; by default as the protocol says."""
    measures: Annotated[
        str, console.names_option("measure", "Extra measures, separated by commas")
    ] = ""
    caption_split: str | None = None
    """For runs that read prompts: the split of the real images' set whose captions are the prompts,
    such as test; by default that of the real images."""

    def evaluation_protocol(self) -> "EvalProtocol":
        """The protocol of that name, with the options above that are set."""
        from fewstep import metrics

        return metrics.protocol(self.protocol).with_settings(
            samples=self.samples,
            extractor=self.extractor,
            resize=self.resize,
            measures=tuple(name.strip() for name in self.measures.split(",") if name.strip()),
        )


@dataclass(frozen=True, kw_only=True)
class Options(LikelihoodOptions, GuidanceOptions, ProtocolOptions):
    """Score a run against real images, at one or more numbers of sampling steps."""

    run: Annotated[str, tyro.conf.Positional, console.run_option()]
    steps: str = "1,2,4"
    """Sampling step counts, separated by commas."""
    sampler: Annotated[str | None, console.sampler_option()] = None
    grid: Annotated[str | None, console.grid_option()] = None
    weights: Literal["ema", "raw", "best"] = "ema"
    """Averaged weights of the last step (ema), raw weights of the last step, or averaged weights of
    the best evaluation during training."""
    data: Annotated[
        str | None,
        console.data_option(
            "Real images to compare with, resized to the run's size, by default the run's training "
            "set; required for checkpoints of other projects, and for a run whose images have moved"
        ),
    ] = None
    precision: Precision = "f32"
    """Number format in which the images are generated; features are always computed in f32."""
    seed: SampleSeed = 0
    """Seed of the noise."""
    straightness: bool = False
    """Instead of scores, measure the straightness of the paths from noise to image, which is 0 for
    straight lines, with 32 Euler steps under Flow; --steps, --sampler and --grid have
    no effect."""
    json: bool = False
    """Print the scores as a JSON list."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep evaluate`. Returns the exit code."""
    options = console.options(Options, "evaluate", argv)
    options.check()
    options.check_likelihood(
        straightness=options.straightness,
        precision=options.precision,
        without_effect={
            "sampler": options.sampler,
            "grid": options.grid,
            "extractor": options.extractor,
            "resize": options.resize,
            "measures": options.measures,
            "caption-split": options.caption_split,
        },
    )
    from fewstep import comparison, runs
    from fewstep.distributed import check_equal, device, first_rank, run_together, world
    from fewstep.evaluation import Evaluator
    from fewstep.loading import load_run, reference_images
    from fewstep.sampler_choices import with_sampler_choices

    counts = console.numbers("--steps", options.steps, int, SamplingSteps)
    protocol = options.evaluation_protocol()
    run = run_together(lambda: load_run(options.run, weights=options.weights))
    recipe = run.recipe and run.recipe.table()
    generator = run_together(lambda: options.apply(run.generator, recipe))
    if options.likelihood:
        return _likelihood(run, generator.to(device()), options) if first_rank() else 0
    generator = with_sampler_choices(generator, recipe, sampler=options.sampler, grid=options.grid)
    console.warn_if_slow(options.precision)
    generator = generator.with_precision(options.precision).to(device())
    if options.straightness:
        return _straightness(generator, options) if first_rank() else 0
    images = run_together(lambda: reference_images(run, options.data))
    prompted = None
    comparison.check_caption_split(options.caption_split, [run])
    if split := options.caption_split:
        prompted = run_together(lambda: reference_images(run, options.data, split=split))
    if world()[1] > 1:  # a single process need not hash its weights here
        check_equal(
            {
                "the hash of the weights": runs.weights_hash(generator),
                "the fingerprint of the images": images.fingerprint,
                **asdict(options),
            }
        )
    evaluator = comparison.prepare(Evaluator(images, protocol, prompted=prompted), bar=console.bar)
    scores = [
        comparison.measure(
            evaluator, generator, options.run, steps, seed=options.seed, bar=console.bar
        )
        for steps in dict.fromkeys(map(generator.nearest, counts))
    ]
    if not first_rank():
        return 0
    if options.json:
        print(json.dumps([score.table() for score in scores], indent=2))
    else:
        show((options.run, score) for score in scores)
    return 0


def _likelihood(run: "LoadedRun", generator: "Generator", options: Options) -> int:
    settings = options.likelihood_settings(options.samples, options.seed)
    places: Any = {"data": options.data, "split": options.split}
    return evaluate_likelihood(run, generator, settings, **places, as_json=options.json)


def _straightness(generator: "Generator", options: Options) -> int:
    from fewstep.evaluation import straightness

    samples = options.samples or 500
    score = straightness(generator, samples=samples, seed=options.seed)
    if options.json:
        print(json.dumps({"straightness": score, "samples": samples, "seed": options.seed}))
    else:
        console.out.print(
            f"{options.run}: straightness {score:.4f} (0 for straight lines; relative to their "
            f"squared length), {samples} samples, seed {options.seed}, 32 Euler steps"
        )
    return 0


def show(scores: Iterable[tuple[str, "Score"]]) -> None:
    """Print a table of scores for each protocol, with the protocol's settings below."""
    groups: dict[tuple[object, ...], list[tuple[str, Score]]] = {}
    for name, score in scores:
        groups.setdefault(score.protocol, []).append((name, score))
    for rows in groups.values():
        _table(rows)


def _table(rows: Sequence[tuple[str, "Score"]]) -> None:
    from rich.table import Table

    from fewstep.metrics import computed_measures

    first = rows[0][1]
    measures = [m for m in computed_measures([s.measures for _, s in rows]) if m.key != "frechet"]
    table = Table(box=None, pad_edge=False)
    table.add_column("Run")
    table.add_column("Steps", justify="right")
    table.add_column("Sampler")
    table.add_column(first.distance, justify="right")
    names = [m.name(standard=first.standard) for m in measures]
    for heading in (*names, "Evaluations", "ms/image"):
        table.add_column(heading, justify="right")
    notes: dict[str, None] = {}
    for name, score in rows:
        m = score.measures
        spread = f" ± {m.frechet_high - m.frechet:.2f}" if m.frechet_high is not None else ""
        table.add_row(
            name,
            str(score.steps),
            score.sampler_text,
            f"{m.frechet:.2f}{spread}",
            *(measure.text(score.measures) or "" for measure in measures),
            str(score.evaluations),
            f"{1000 * score.seconds_per_image:.2f}",
        )
        notes[
            f"{score.extractor} ({score.extractor_hash[:12]}), resize {score.resize}, "
            f"{score.samples:,} samples, seed {score.seed}, {_special_settings(score)}"
            f"against {score.reference}; ± is the 95 % interval; times on {score.device}"
        ] = None
        notes |= dict.fromkeys(score.caveats)
    console.print_table(table)
    for line in notes:
        console.out.print(line, style="dim")


def _special_settings(score: "Score") -> str:
    """Precision, class frequencies and prompts of the samples, unless they are the default."""
    precision = "" if score.number_format == "f32" else f"generated in {score.number_format}, "
    classes = "" if score.labels != "as in the set" else "classes as often as in the set, "
    prompts = "" if score.prompts == "none" else f"prompts: {score.prompts}, "
    return precision + classes + prompts
