"""`fewstep train RECIPE [key=value ...] [--out DIR] [--extend] [--track TRACKER]`."""

import shlex
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fewstep.cli import console
from fewstep.errors import InputError, SharedError
from fewstep.paths import check_writable_folder
from fewstep.schema import explain, read_table

if TYPE_CHECKING:
    from fewstep.recipe import Recipe
    from fewstep.trackers import Tracking

HELP = frozenset({"-h", "--help"})


@dataclass(frozen=True)
class Options:
    """Train a recipe in a run folder; the same command again resumes it. Settings that do not
    change the result may differ then, such as fit.save_every, evaluate.* and data.path.

    `fewstep train RECIPE --help` lists the keys of the recipe.
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """Name of a preset, or a TOML file."""
    overrides: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[KEY=VALUE ...]")
    ] = field(default=())
    """Overrides of the recipe, such as fit.steps=100; the value is TOML, or text as it stands."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The run folder; by default runs/RECIPE."""
    extend: bool = False
    """Train a run further, to a larger fit.steps, if its result is that of a training of this
    length from the start: the learning rate, the average and the method must not depend on it."""
    dry_run: bool = False
    """Print what the training needs and costs, and what would be wrong with it, without training,
    downloads or files."""
    track: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        console.names_option("tracker", "Trackers that get the log and samples; one per --track"),
    ] = ()


def main(argv: Sequence[str], verb: str = "train") -> int:
    """Train a recipe, unless it is finished. Returns the exit code."""
    explain = _options_beside_help(argv, verb)
    if explain:
        return _explain(explain, verb)
    options = console.options(Options, verb, argv)
    table = read_table(options.recipe, options.overrides)  # a mistyped key needs no torch
    from fewstep.distributed import gather, run_together
    from fewstep.recipe import parse
    from fewstep.runner import Diverged, is_finished

    recipe = run_together(lambda: parse(table))
    folder = options.out or Path("runs") / Path(options.recipe).stem
    if options.dry_run:
        from fewstep.cli.dry_run import print_plan

        return print_plan(recipe, folder, extend=options.extend)
    if not folder.is_dir():  # a finished run may be on a disk that cannot be written
        check_writable_folder(folder, "--out")
    command = shlex.join(["fewstep", verb, *argv])
    extend = options.extend
    if gather(run_together(lambda: is_finished(recipe, folder, extend=extend)))[0]:
        _report(folder, command)
        console.out.print(f"{folder} is finished")
        return 0
    check_writable_folder(folder, "--out")
    try:
        _train_with_bar(recipe, folder, options.track, extend=options.extend)
    except console.Stopped:
        console.out.print(f"stopped; to resume: {command}")
        return 0
    except Diverged as error:
        raise SharedError(f"{error}. For example: {command} {error.setting}") from error
    _report(folder, command)
    report = "" if recipe.method_name == "autoencode" else " and report.html"
    console.out.print(f"{folder}: model.safetensors{report}")
    return 0


def _report(folder: Path, command: str) -> None:
    """Write the report of a finished run, unless it is there."""
    from fewstep.distributed import first_rank
    from fewstep.report import report_run
    from fewstep.run_folder import Run

    run = Run(folder)
    if first_rank() and not run.is_autoencoder and not run.report_file.exists():
        report_run(folder, command)


def _train_with_bar(
    recipe: "Recipe", folder: Path, trackers: Sequence[str], *, extend: bool
) -> None:
    from fewstep.trackers import Tracking

    with (
        closing(Tracking(folder, trackers, console.out.print)) as tracking,
        console.bar(folder.name, recipe.fit.steps, stoppable=True) as update,
    ):
        train(recipe, folder, update, tracking, extend=extend)


def train(
    recipe: "Recipe",
    folder: Path,
    update: console.Update,
    tracking: "Tracking | None" = None,
    *,
    extend: bool = False,
) -> None:
    """Train until the end and report each step to `update`, which may raise Stopped to stop it."""
    from fewstep.runner import run_recipe

    with closing(run_recipe(recipe, folder, extend=extend)) as steps:
        for progress in steps:
            if tracking:
                tracking.forward(progress.step)
            losses = (progress.numbers.get(f"{name}/loss") for name in ("student", "adapt"))
            loss = next((loss for loss in losses if loss is not None), None)
            note = "" if loss is None else f"loss {loss:.4g}"
            update(progress.step, note, total=progress.total)


def _options_beside_help(argv: Sequence[str], verb: str) -> Options | None:
    """The options without `--help`, if they name a recipe; then the help is about the recipe."""
    if HELP & set(argv):
        with suppress(InputError):
            return console.options(Options, verb, [word for word in argv if word not in HELP])
    return None


def _explain(options: Options, verb: str) -> int:
    """Print every key of a recipe with its value and meaning; those of the method come first."""
    from rich.table import Table
    from rich.text import Text

    recipe = read_table(options.recipe, options.overrides)
    about = recipe.get("about", {})
    console.out.print(f"fewstep {verb} {options.recipe} [key=value ...] [--out DIR]\n")
    title = Text(about.get("title", options.recipe), style="bold")
    console.out.print(title, f" {about.get('paper', '')}\n")
    table = Table(box=None, pad_edge=False)
    for heading in ("key", "value here", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, value, meaning in explain(recipe):
        table.add_row(key, value, meaning)
    console.out.print(table, soft_wrap=False)
    return 0
