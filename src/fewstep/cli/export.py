"""`fewstep export RUN --to onnx --out DIR`: a generator for programs other than fewstep."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fewstep import plugins
from fewstep.cli import console
from fewstep.cli.guidance import parse_interval
from fewstep.cli.prompts import print_unknown_words, printable_text
from fewstep.errors import InputError
from fewstep.formatting import quantity
from fewstep.paths import check_writable_folder
from fewstep.ranges import NonNegative, SamplingSteps

if TYPE_CHECKING:
    from fewstep.export.source import Source
    from fewstep.stored_weights import Dtype

OPTIONS = ("teacher", "single_file", "aot")


@dataclass(frozen=True)
class Options:
    """Write a generator for programs other than fewstep, and check the files against PyTorch."""

    run: Annotated[str, tyro.conf.Positional, console.run_option()]
    to: Annotated[str, console.names_option("exporter", "What to write")]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """The folder to write. A folder of an earlier export is replaced."""
    steps: str | None = None
    """Numbers of sampling steps, separated by commas; by default those that the run supports. If it
    supports any, 1, 2 and 4 for a student and 16 for a teacher. onnx and torch write one program
    for each."""
    sampler: Annotated[str | None, console.sampler_option()] = None
    grid: Annotated[str | None, console.grid_option()] = None
    guidance: NonNegative = 1.0
    """Weight of classifier-free guidance; 1 means no guidance."""
    guidance_interval: Annotated[str | None, tyro.conf.arg(metavar="LOW,HIGH")] = None
    """onnx and torch: lowest and highest time of guidance, from 0 (image) to 1 (noise), such as
    0.2,0.8; by default all times."""
    negative: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """With --guidance: a prompt to lead away from, in place of no prompt."""
    weights: Literal["ema", "raw", "best"] = "ema"
    """Averaged weights of the last step (ema), raw weights of the last step, or averaged weights of
    the best evaluation during training."""
    dtype: Literal["f32", "f16", "int8"] = "f32"
    """Type in which weights are stored; programs compute in f32. int8 has one scale per channel."""
    score: bool = False
    """Score the weights before and after they are rounded, against the set that the run was trained
    on."""
    data: Annotated[str | None, console.score_data_option()] = None
    license: str = ""
    """Licence of the weights, for the files' metadata, such as MIT or CC-BY-4.0."""
    teacher: Annotated[str | None, console.run_option("browser: a generator to show beside it")] = (
        None
    )
    single_file: bool = False
    """browser: write one index.html with everything inside, which opens by double-click."""
    aot: bool = False
    """torch: also compile a package with AOTInductor, which needs a C++ compiler."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep export`. Returns the exit code."""
    options = console.options(Options, "export", argv)
    check_writable_folder(options.out, "--out")
    exporter = _exporter(options)
    from fewstep.export.base import export

    source = _source(options, options.run, options.dtype)
    print_unknown_words(source.generator, [options.negative])
    if options.score:
        source = _with_scores(options, source)
    record = export(exporter, source, options.out, target=options.to)
    size = sum(record["files"].values())
    console.out.print(
        f"{options.out}: {quantity(len(record['files']), 'file')}, {size / 1e6:.2f} MB"
    )
    for name, value in record["checks"].items():
        console.out.print(f"  {name}: {_text(value)}")
    return 0


def _exporter(options: Options) -> Any:
    """The exporter with its options.  Raises: InputError for an option of another target."""
    from fewstep.export.base import Exporter

    kind = plugins.resolve("exporter", options.to)
    if not (isinstance(kind, type) and issubclass(kind, Exporter)):
        raise InputError(f"{options.to} is not a subclass of fewstep.export.base.Exporter")
    names = {f.name for f in fields(kind)}
    changes = {name: getattr(options, name) for name in OPTIONS if getattr(options, name)}
    for name in changes.keys() - names:
        raise InputError(f"--{name.replace('_', '-')} is not an option of --to {options.to}")
    missing = [module for module in kind.extra if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"--to {options.to} needs {', '.join(missing)}: pip install 'fewstep[export]'"
        )
    if "teacher" in changes:
        changes["teacher"] = _source(options, changes["teacher"], options.dtype)
    return kind(**changes)


def _source(options: Options, address: str, dtype: "Dtype") -> "Source":
    from fewstep.export.source import load_source

    own = address == options.run
    steps = (
        console.numbers("--steps", options.steps, int, SamplingSteps)
        if options.steps is not None and own
        else ()
    )
    return load_source(
        address,
        steps=steps,
        sampler=options.sampler if own else None,
        grid=options.grid if own else None,
        guidance=options.guidance if own else 1.0,
        interval=parse_interval(options.guidance_interval) if own else None,
        negative=printable_text(options.negative) if own else "",
        weights=options.weights if own else "ema",
        dtype=dtype,
        license=options.license,
    )


def _with_scores(options: Options, source: "Source") -> "Source":
    """The source with scores of its weights before they are rounded, and after."""
    from fewstep import comparison, metrics
    from fewstep.export.source import check_scorable
    from fewstep.loading import load_run

    check_scorable(source)
    run = load_run(options.run, weights=options.weights)
    protocol = metrics.protocol("quick")
    evaluator = comparison.make_evaluators([run], protocol, options.data, bar=console.bar)[0]
    exact = _source(options, options.run, "f32").generator
    scores = [
        comparison.measure(evaluator, exact, options.run, n, bar=console.bar).table()
        for n in source.steps
    ]
    rounded: list[dict[str, Any]] = []
    if source.dtype != "f32":
        # not saved in the run's folder, which does not hold these weights
        rounded = [evaluator.score(source.generator, steps=n).table() for n in source.steps]
    return replace(source, scores=scores, rounded_scores=rounded)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {_text(v)}" for name, v in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)
