"""`fewstep compare RUN RUN ... [--steps 1,2,4] [--out compare.html]`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.cli import console
from fewstep.cli.evaluate import ProtocolOptions, show
from fewstep.cli.guidance import parse_interval
from fewstep.paths import check_writable
from fewstep.ranges import NonNegative, Precision, SamplingSteps


@dataclass(frozen=True, kw_only=True)
class Options(ProtocolOptions):
    """Score several runs by one protocol and write one report.

    Scores in a run's folder that were measured by the same protocol are used again.
    """

    runs: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        console.run_option("Run folders or weights files", metavar="RUN ..."),
    ]
    steps: str = "1,2,4"
    """Sampling step counts, separated by commas; a run that does not support one uses the nearest
    count that it supports."""
    weights: Literal["ema", "best"] = "ema"
    """Averaged weights: those of the last step, or those of the best evaluation during training."""
    data: Annotated[
        str | None,
        console.data_option(
            "Real images to compare with, resized to the runs' size, by default the training set "
            "of each run; required if it has moved; checkpoints of other projects use that of the "
            "other runs"
        ),
    ] = None
    baseline: str | None = None
    """The run that the others are compared with; by default their common teacher."""
    guidance: NonNegative = 1.0
    """Weight of classifier-free guidance of the runs that were trained for it, such as a teacher,
    and of checkpoints without a recipe; others, such as students, stay as they are. 1 means no
    guidance."""
    guidance_interval: Annotated[str | None, tyro.conf.arg(metavar="LOW,HIGH")] = None
    """Lowest and highest time of guidance, from 0 (image) to 1 (noise), such as 0.2,0.8; by default
    all times."""
    precision: Precision = "f32"
    """Number format in which the images are generated; features are always computed in f32."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("compare.html")
    """The HTML file of the report."""
    json: bool = False
    """Print the scores as a JSON object with one list per run."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep compare`. Returns the exit code."""
    options = console.options(Options, "compare", argv)
    from fewstep.comparison import compare
    from fewstep.report import write_report

    steps = console.numbers("--steps", options.steps, int, SamplingSteps)
    protocol = options.evaluation_protocol()
    check_writable(options.out, "--out")
    console.warn_if_slow(options.precision)
    comparison = compare(
        options.runs,
        protocol,
        steps,
        weights=options.weights,
        data_name=options.data,
        caption_split=options.caption_split,
        baseline=options.baseline,
        guidance=options.guidance,
        interval=parse_interval(options.guidance_interval),
        precision=options.precision,
        bar=console.bar,
    )
    exhibits = comparison.exhibits
    write_report(options.out, exhibits, title=comparison.title, evaluator=comparison.evaluator)
    if options.json:
        tables = {e.name: [score.table() for score in e.scores] for e in exhibits}
        print(json.dumps(tables, indent=2))
        return 0
    show((e.name, score) for e in exhibits for score in e.scores)
    console.out.print(f"report: {options.out}")
    return 0
