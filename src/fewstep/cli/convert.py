"""`fewstep convert SOURCE --out FILE`: any generator as one self-describing weights file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fewstep.cli import console
from fewstep.errors import InputError
from fewstep.formatting import quantity
from fewstep.paths import check_writable
from fewstep.ranges import SamplingSteps

if TYPE_CHECKING:
    from fewstep.export.source import Source
    from fewstep.generator import Generator


@dataclass(frozen=True)
class Options:
    """Write a run, or a checkpoint of another project, as one safetensors file that describes
    itself: `fewstep` loads it without options, and without the original file."""

    source: Annotated[str, tyro.conf.Positional, console.run_option(metavar="SOURCE")]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The .safetensors file to write."""
    weights: Literal["ema", "raw", "best"] = "ema"
    """Which weights of a run: averaged weights of the last step (ema), raw weights of the last
    step, or averaged weights of the best evaluation during training."""
    dtype: Literal["f32", "f16"] = "f32"
    """Type in which weights are stored; they are widened to f32 when they are loaded."""
    score: bool = False
    """Measure the weights in the file against the set that the run was trained on, by the protocol
    quick. By default, scores in the run's folder are taken along if they are of these weights."""
    data: Annotated[str | None, console.score_data_option()] = None
    steps: str | None = None
    """Numbers of sampling steps at which --score measures, separated by commas; by default those
    that the run supports. If it supports any, 1, 2 and 4 for a student and 16 for a teacher."""
    license: str = ""
    """Licence of the weights, such as MIT; by default that of SOURCE."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep convert`. Returns the exit code."""
    options = console.options(Options, "convert", argv)
    from fewstep import runs
    from fewstep.export.source import load_source

    _check_out(options)
    if options.steps is not None and not options.score:
        raise InputError("--steps says where --score measures: add --score, or leave it out")
    source = load_source(
        options.source,
        steps=console.numbers("--steps", options.steps, int, SamplingSteps)
        if options.steps is not None
        else (),
        weights=options.weights,
        dtype=options.dtype,
        license=options.license,
    )
    step = runs.describe(options.source, weights=options.weights).get("step")
    scores = _measure(options, source) if options.score else _copied_scores(source)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        runs.save_generator(
            options.out,
            source.generator,
            source.recipe,
            source.pins,
            step=step,
            license=source.license,
            scores=scores,
            dtype=options.dtype,
        )
    except OSError as error:
        problem = error.strerror or str(error)
        raise InputError(f"cannot write {options.out}: {problem}; give another --out") from error
    console.out.print(f"{options.out}: {_summary(source.generator)}")
    for name, value in source.rounding.items():
        console.out.print(f"  rounding to f16 changes images in [0, 1] by {value:.2g} ({name})")
    return 0


def _check_out(options: Options) -> None:
    """Raise InputError for a file that must not be overwritten: of a run, or the source itself."""
    from fewstep.run_folder import Run

    out, source = options.out, Path(options.source)
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must be the name of a .safetensors file")
    check_writable(out, "--out")
    for folder in (out.parent, out.parent.parent):
        run = Run(folder)
        if run.recipe_file.exists() and out in (run.model_file, run.best_file, run.state_file):
            raise InputError(f"--out {out} is the file of a run: give another name")
    for file in (source, source / "model.safetensors"):
        if out.is_file() and file.exists() and out.samefile(file):
            raise InputError(f"--out {out} is the file to read: give another name")


def _copied_scores(source: "Source") -> Sequence[Mapping[str, Any]]:
    """Tables of the scores that are known of the weights, unless rounding changes them."""
    from fewstep import runs

    unchanged = runs.weights_hash(source.generator) == source.weights_hash
    return source.scores if unchanged else ()


def _measure(options: Options, source: "Source") -> list[dict[str, Any]]:
    """Tables of the scores of the weights that the file will have."""
    from fewstep import comparison, metrics
    from fewstep.evaluation import exhaust
    from fewstep.export.source import check_scorable
    from fewstep.loading import load_run

    check_scorable(source)
    run = load_run(options.source, weights=options.weights)
    protocol = metrics.protocol("quick")
    evaluator = comparison.make_evaluators([run], protocol, options.data, bar=console.bar)[0]
    scores: list[dict[str, Any]] = []
    for steps in source.steps:
        with console.bar(f"{steps} steps", evaluator.protocol.samples) as update:
            score = exhaust(evaluator.iter_score(source.generator, steps=steps), update)
        scores.append(score.table())
    return scores


def _summary(generator: "Generator") -> str:
    """One line on the network and the samples of a generator."""
    from fewstep import plugins
    from fewstep.guidance import unguided

    denoiser, spec = generator.denoiser, generator.spec
    backbone = unguided(denoiser.backbone)
    parts = {
        "backbone": backbone.config,
        "process": denoiser.process,
        "parametrization": denoiser.parametrization,
        "sampler": generator.step,
    }
    names = [f"{noun} {plugins.name_of(noun, type(part))}" for noun, part in parts.items()]
    size = "x".join(map(str, spec.shape))
    classes = f", {spec.classes} classes" if spec.classes else ""
    count = sum(parameter.numel() for parameter in backbone.parameters())
    return f"{quantity(count, 'parameter')}, {', '.join(names)}, {size}{classes}"
