"""What the verbs share: reading options, progress bars, a gentle Ctrl-C, warnings in one line."""

import os
import signal
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from fewstep.errors import InputError

Options = TypeVar("Options")
# of several processes, one talks
quiet = os.environ.get("RANK", "0") != "0"
out = Console(soft_wrap=True, highlight=False, quiet=quiet)


def options(
    kind: type[Options], verb: str, argv: Sequence[str], *, opposites: bool = False
) -> Options:
    """The verb's options, a dataclass, from the command line; exits with 2 if they do not fit.
    `opposites` gives each flag two spellings: `--flag` and `--no-flag`."""
    warnings.showwarning = _one_line
    return tyro.cli(
        kind,
        prog=f"fewstep {verb}",
        args=list(argv),
        config=() if opposites else (tyro.conf.FlagCreatePairsOff,),
        console_outputs=True,
    )


def whole(table: Table) -> None:
    """Print a table in full, wider than the window where need be: a name cut short is no name."""
    needed = out.measure(table, options=out.options.update(max_width=1000)).maximum
    Console(width=max(out.width, needed), soft_wrap=True, quiet=quiet).print(table)


def counts(text: str) -> tuple[int, ...]:
    """Step counts such as `1,2,4`."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--steps {text}: give numbers with commas, such as 1,2,4") from error


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "", style="dim")


@contextmanager
def bar(what: str, total: int, done: int = 0) -> Generator[Any]:
    """A progress bar with rate and time left; call it with (done, note)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(what, total=total, completed=done, note="")

        def tell(done: int, note: str = "") -> None:
            progress.update(task, completed=done, note=note)

        yield tell


class Stop:
    """Whether the user has asked to stop."""

    asked = False


@contextmanager
def stopping() -> Generator[Stop]:
    """The first Ctrl-C asks to stop at the next whole step; a second one interrupts at once."""
    stop = Stop()

    def handler(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    print(f"fewstep: {message}", file=sys.stderr)
