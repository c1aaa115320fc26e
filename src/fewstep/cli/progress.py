"""`fewstep progress RUN [--csv] [-o FILE]`."""

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fewstep.cli import console
from fewstep.errors import InputError
from fewstep.paths import check_kind, check_writable

if TYPE_CHECKING:
    from fewstep.run_folder import Run

LAST = 10
"""Number of the latest log lines over which losses and rate are averaged."""


@dataclass(frozen=True)
class Options:
    """Show a run's step, losses and scores, or print its log as CSV."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    csv: bool = False
    """Print every logged line as CSV. The columns of a score have names such as
    score/1-step/frechet."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """Write the CSV to this file."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep progress`. Returns the exit code."""
    options = console.options(Options, "progress", argv)
    from fewstep.run_folder import Run

    if options.out:
        check_writable(options.out, "--out")
    run = Run(options.run)
    lines = run.progress()
    if not lines:
        check_kind(options.run, "run")
        raise InputError(
            f"{options.run} contains no progress.jsonl with a complete line; give a run folder"
        )
    if options.csv or options.out:
        write_csv(lines, options.out)
    else:
        show(run, lines)
    return 0


def write_csv(lines: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """Write the log as CSV, one row per line, to `path` or, if it is None, to stdout."""
    from fewstep.files import atomic_write
    from fewstep.trackers import flat

    rows = [{key: _cell(value) for key, value in flat(line).items()} for line in lines]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if path is None:
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()  # so that a broken pipe raises here and not at exit
        return
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | bool) else value


def show(run: "Run", lines: Sequence[Mapping[str, Any]]) -> None:
    """Print a short table: step, time, memory, losses and scores."""
    from rich.table import Table

    steps = [line for line in lines if "seconds" in line]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("run", str(run.folder))
    table.add_row("step", _step_of_total(lines))
    if steps:
        table.add_row("images", f"{steps[-1]['images']:,}")
        table.add_row("time", _time(steps))
        if memory := max(line.get("memory", 0) for line in steps):
            table.add_row("memory", f"{memory:,} MiB at most")
    for key, value in _losses(steps[-LAST:]).items():
        table.add_row(key, f"{value:.4g}")
    for name, text in _scores(lines).items():
        table.add_row(name, text)
    console.print_table(table)


def _step_of_total(lines: Sequence[Mapping[str, Any]]) -> str:
    step, total = (max(line.get(key, 0) for line in lines) for key in ("step", "total"))
    return f"{step:,} of {total:,} ({100 * step / total:.0f} %)" if total else f"{step:,}"


def _time(steps: Sequence[Mapping[str, Any]]) -> str:
    """Total training time and the latest rate; the logged `seconds` restart when a run resumes."""
    total, session = 0.0, 0
    for i, line in enumerate(steps):
        before = steps[i - 1]["seconds"] if i else 0.0
        if line["seconds"] < before:
            before, session = 0.0, i
        total += line["seconds"] - before
    minutes, seconds = divmod(round(total), 60)
    text = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    recent = steps[session:][-LAST:]
    elapsed = recent[-1]["seconds"] - recent[0]["seconds"]
    count = recent[-1]["step"] - recent[0]["step"]
    return f"{text}, {count / elapsed:,.1f} steps/s" if elapsed > 0 else text


def _losses(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each number over the lines that contain it."""
    from fewstep.trackers import numbers

    values: dict[str, list[float]] = {}
    for line in steps:
        for key, value in numbers(line).items():
            if key not in ("images", "seconds", "memory"):
                values.setdefault(key, []).append(value)
    return {key: fmean(numbers) for key, numbers in values.items()}


def _scores(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The latest score at each number of sampling steps, with the training step of its weights."""
    last = {
        line["score"].get("steps"): (line["step"], line["score"])
        for line in lines
        if isinstance(line.get("score"), Mapping)
    }
    texts: dict[str, str] = {}
    for steps, (step, score) in sorted(last.items(), key=lambda item: item[0] or 0):
        parts = [f"Fréchet {score['frechet']:.2f}"] if score.get("frechet") is not None else []
        if score.get("accuracy") is not None:
            parts.append(f"accuracy {100 * score['accuracy']:.1f} %")
        texts[f"{steps}-step score"] = f"{', '.join(parts)} ({score.get('extractor')}, step {step})"
    return texts
