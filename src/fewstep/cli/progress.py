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

if TYPE_CHECKING:
    from fewstep.runs import Run

LAST = 10  # lines that the losses and the rate are taken over


@dataclass(frozen=True)
class Options:
    """How far a run is, with its last losses and scores; or its whole log as CSV."""

    run: tyro.conf.Positional[Path]
    """A run folder."""
    csv: bool = False
    """Print every logged line as CSV: a score's columns are named score/1-step/frechet."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """Write the CSV there instead."""


def main(argv: Sequence[str]) -> int:
    """Print; 0 when done."""
    told = console.options(Options, "progress", argv)
    from fewstep.runs import Run

    run = Run(told.run)
    lines = run.progress()
    if not lines:
        raise InputError(f"{told.run} holds no progress.jsonl with a whole line; give a run folder")
    if told.csv or told.out:
        write_csv(lines, told.out)
    else:
        show(run, lines)
    return 0


def write_csv(lines: Sequence[Mapping[str, Any]], path: Path | None) -> None:
    """A row a line, columns as they first appear; to stdout without a path."""
    from fewstep.trackers import flat

    rows = [{key: _cell(value) for key, value in flat(line).items()} for line in lines]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    if path is None:
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()  # a broken pipe is told here, not at exit
        return
    try:
        path.write_text(text.getvalue(), encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | bool) else value


def show(run: "Run", lines: Sequence[Mapping[str, Any]]) -> None:
    """Where the run stands, in a few rows."""
    from rich.table import Table

    steps = [line for line in lines if "seconds" in line]
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("run", str(run.folder))
    table.add_row("step", _standing(run, max(line["step"] for line in lines)))
    if steps:
        table.add_row("images", f"{steps[-1]['images']:,}")
        table.add_row("time", _time(steps))
        if memory := max(line.get("memory", 0) for line in steps):
            table.add_row("memory", f"{memory:,} MiB at most")
    for key, value in _losses(steps[-LAST:]).items():
        table.add_row(key, f"{value:.4g}")
    for name, told in _scores(lines).items():
        table.add_row(name, told)
    console.whole(table)


def _standing(run: "Run", step: int) -> str:
    if not run.recipe_file.exists():
        return f"{step:,}"
    from fewstep.recipe import read

    total = read(str(run.recipe_file)).fit.steps
    return f"{step:,} of {total:,} ({100 * step / total:.0f} %)"


def _time(steps: Sequence[Mapping[str, Any]]) -> str:
    """Over all sessions, and the rate of the last: `seconds` starts anew at each resume."""
    total, session = 0.0, 0
    for i, line in enumerate(steps):
        before = steps[i - 1]["seconds"] if i else 0.0
        if line["seconds"] < before:
            before, session = 0.0, i
        total += line["seconds"] - before
    minutes, seconds = divmod(round(total), 60)
    told = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    recent = steps[session:][-LAST:]
    elapsed = recent[-1]["seconds"] - recent[0]["seconds"]
    made = recent[-1]["step"] - recent[0]["step"]
    return f"{told}, {made / elapsed:,.1f} steps/s" if elapsed > 0 else told


def _losses(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each number over these lines, where it is told."""
    from fewstep.trackers import numbers

    told: dict[str, list[float]] = {}
    for line in steps:
        for key, value in numbers(line).items():
            if key not in ("images", "seconds", "memory"):
                told.setdefault(key, []).append(value)
    return {key: fmean(values) for key, values in told.items()}


def _scores(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The last score at each number of steps, and when it was taken."""
    last = {
        line["score"].get("steps"): (line["step"], line["score"])
        for line in lines
        if isinstance(line.get("score"), Mapping)
    }
    told: dict[str, str] = {}
    for steps, (step, score) in sorted(last.items(), key=lambda item: item[0] or 0):
        parts = [f"Fréchet {score['frechet']:.2f}"] if score.get("frechet") is not None else []
        if score.get("accuracy") is not None:
            parts.append(f"accuracy {100 * score['accuracy']:.1f} %")
        told[f"{steps}-step score"] = f"{', '.join(parts)} ({score.get('extractor')}, step {step})"
    return told
