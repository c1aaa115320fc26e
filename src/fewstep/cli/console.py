"""Helpers of all verbs: options, printed text and tables, progress bars, Ctrl-C, warnings."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar, cast, get_type_hints, runtime_checkable

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

from fewstep import plugins
from fewstep.cli.parsing import parse
from fewstep.errors import InputError
from fewstep.formatting import one_line
from fewstep.models import model_addresses
from fewstep.paths import expand_home
from fewstep.ranges import Precision
from fewstep.tables import field_types, from_table

Options = TypeVar("Options")
Number = TypeVar("Number", int, float)
QUIET = os.environ.get("RANK", "0") != "0"
"""Of several processes under `torchrun`, only the first one prints."""


def make_console(**settings: Any) -> Console:
    """A console that prints text unchanged, without rich's markup `[a=b]` and `:name:`."""
    return Console(
        soft_wrap=True, markup=False, emoji=False, highlight=False, quiet=QUIET, **settings
    )


out = make_console()


def options(
    kind: type[Options], verb: str, argv: Sequence[str], *, negations: bool = False
) -> Options:
    """Parse the command line into `kind`, a dataclass.

    Options and positional arguments may be in any order. `negations` adds an option `--no-flag` for
    each flag.

    Raises: InputError for arguments that do not fit, or are out of range.
    """
    warnings.showwarning = _print_warning
    config = [tyro.conf.DisallowNone] + ([] if negations else [tyro.conf.FlagCreatePairsOff])
    settings: dict[str, Any] = {"prog": f"fewstep {verb}", "args": list(argv), "config": config}
    parsed, rest = parse(kind, {**settings, "return_unknown_args": True})
    if not rest:
        return _checked(parsed)
    name = _variadic_field(kind)
    if name is None or any(word.startswith("-") for word in rest):
        return parse(kind, settings)  # raises InputError with the unknown arguments
    # tyro reads only one group of positional arguments; `rest` are those after a later option
    dataclass: Any = parsed
    return _checked(replace(dataclass, **{name: (*getattr(parsed, name), *rest)}))


def _checked(parsed: Any) -> Any:
    """The options, after a check of the ranges of numbers.

    A leading ~, which shells leave in `-o=~/x`, is replaced by the home folder.
    """
    changes: dict[str, Any] = {}
    for name, kind in field_types(type(parsed)).items():
        value = getattr(parsed, name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            from_table(kind, value, f"--{name.replace('_', '-')}")
        changes[name] = _expand(value)
    return replace(parsed, **changes)


def _expand(value: Any) -> Any:
    if isinstance(value, Path):
        return Path(expand_home(str(value)))
    if isinstance(value, tuple):
        return tuple(map(_expand, cast(tuple[Any, ...], value)))
    return expand_home(value) if isinstance(value, str) else value


def names_option(noun: str, text: str) -> Any:
    """Settings of an option that takes names of `noun`; its help lists the registered names."""
    names = ", ".join(plugins.names(noun))
    return tyro.conf.arg(help=f"{text}: {names}, or an address package.module:NAME.")


def choice_option(noun: str, text: str, example: str) -> Any:
    """As `names_option`, for an option that also takes a table with settings."""
    names = ", ".join(plugins.names(noun))
    return tyro.conf.arg(
        help=f"{text}: {names}, an address package.module:NAME, or a table with settings, such as "
        f"'{example}'."
    )


def sampler_option(text: str = "Sampler, by default that of the run") -> Any:
    """Settings of the option --sampler."""
    return choice_option("sampler", text, '{name="multistep", order=3}')


def grid_option() -> Any:
    """Settings of the option --grid."""
    text = "Times of the steps, by default those of the run"
    return choice_option("grid", text, '{name="table", spacing="trailing"}')


def run_option(text: str = "", *, metavar: str = "RUN") -> Any:
    """Settings of an argument that takes runs; its help lists the registered sources."""
    models = ", ".join(model_addresses())
    sources = ", ".join(f"{source}:PATH" for source in plugins.names("source"))
    return tyro.conf.arg(
        metavar=metavar,
        help=f"{text or 'A run folder or weights file'}, a model that comes with a package "
        f"({models}), or a checkpoint of another project: "
        f"{sources}. PATH is a folder or file, or OWNER/NAME on the Hugging Face hub; options "
        "follow it as ?key=value&key=value.",
    )


def data_option(text: str, *, metavar: str = "DATA") -> Any:
    """Settings of an option that takes a data set; its help lists the registered names."""
    names = ", ".join(name for name in plugins.names("data") if name != "folder")
    return tyro.conf.arg(
        metavar=metavar,
        help=f"{text}: {names}, a folder of images, as DIR or folder:DIR, or an address "
        "package.module:NAME. NAME:PATH also names the folder of celeba.",
    )


def score_data_option() -> Any:
    """Settings of the option that says where the images of --score are."""
    return data_option(
        "The images for --score, by default those that the run was trained on; required if they "
        "have moved"
    )


def _variadic_field(kind: type[Any]) -> str | None:
    """The field that takes any number of positional arguments."""
    for name, hint in get_type_hints(kind, include_extras=True).items():
        metadata = getattr(hint, "__metadata__", ())
        if tyro.conf.Positional in metadata and hint.__origin__ == tuple[str, ...]:
            return name
    return None


def print_table(table: Table) -> None:
    """Print a table without cutting its cells, even if it is wider than the window."""
    needed = out.measure(table, options=out.options.update(max_width=1000)).maximum
    make_console(width=max(out.width, needed)).print(table)


def numbers(option: str, text: str, kind: type[Number], limits: Any) -> tuple[Number, ...]:
    """Numbers separated by commas, such as the `1,2,4` of `--steps 1,2,4`.

    Raises: InputError for other text, and for a number out of the range of the type `limits`.
    """
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"{option} {text} is not a list of numbers; separate them by commas, such as 1,2,4"
        ) from error
    for value in values:
        from_table(limits, value, option)
    return values


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f}/s" if speed else "", style="dim")


@runtime_checkable
class Update(Protocol):
    """Sets a progress bar to `done` of `total`, with a note beside it."""

    def __call__(self, done: int, note: str = ..., total: int = ...) -> None: ...


class Bars:
    """Progress bars, one below the other, with rate and remaining time."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            console=make_console(stderr=True),
            disable=QUIET,
        )

    def add(self, name: str, total: int) -> Update:
        """Add a bar. It appears at its first update, so that an earlier error shows no bar."""
        task = self._progress.add_task(name, total=total, note="", visible=False)

        def update(done: int, note: str = "", total: int = total) -> None:
            self._progress.start()
            self._progress.update(task, completed=done, note=note, total=total, visible=True)

        return update

    def __enter__(self) -> "Bars":
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress.live.is_started:
            self._progress.stop()


@contextmanager
def bar(name: str, total: int, *, stoppable: bool = False) -> Generator[Update]:
    """A single progress bar; call it with (done, note).

    With `stoppable`, after the first Ctrl-C the next call with `done` < `total` raises Stopped.
    """
    with Bars() as bars:
        update = bars.add(name, total)
        if not stoppable:
            yield update
            return
        with stop_requests() as stop_requested:

            def stoppable_update(done: int, note: str = "", total: int = total) -> None:
                update(done, note, total)
                if stop_requested() and done < total:
                    raise Stopped

            yield stoppable_update


class Stopped(Exception):
    """Raised if the user stopped the work between two steps; the same command resumes it."""


@contextmanager
def stop_requests() -> Generator[Callable[[], bool]]:
    """A function that returns whether Ctrl-C was pressed; a second Ctrl-C interrupts at once."""
    pressed = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def warn_if_slow(precision: Precision) -> None:
    """Warn if this machine is slow in the number format of the option --precision."""
    from fewstep.distributed import device
    from fewstep.precision import slow_precision

    problem = slow_precision(precision, device().type, "--precision", "generating")
    if problem:
        warnings.warn(problem, stacklevel=2)


def _print_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    if not QUIET:
        print(f"fewstep: {one_line(str(message))}", file=sys.stderr)
