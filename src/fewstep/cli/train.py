"""`fewstep train RECIPE [key=value ...] [--out DIR] [--track TRACKER]`."""

import shlex
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fewstep.cli import console

if TYPE_CHECKING:
    from fewstep.recipe import Recipe
    from fewstep.trackers import Follower


@dataclass(frozen=True)
class Options:
    """Train a recipe in its run folder; the same command again resumes it.

    `fewstep train RECIPE --help` lists the recipe's own keys.
    """

    recipe: tyro.conf.Positional[str]
    """A preset's name, or a TOML file."""
    overrides: tyro.conf.Positional[tuple[str, ...]] = field(default=())
    """Changes to the recipe, such as fit.steps=100; the right side is TOML."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The run folder; by default runs/RECIPE."""
    track: Annotated[
        tuple[Literal["tensorboard", "wandb", "trackio"], ...], tyro.conf.UseAppendAction
    ] = ()
    """Forward the log and the samples to this tracker; give it again for another."""


def main(argv: Sequence[str], verb: str = "train") -> int:
    """Train, or say that it is done; 0 either way."""
    if recipe_asked(argv):
        return _recipe_help(argv, verb)
    told = console.options(Options, verb, argv)
    from fewstep.recipe import read
    from fewstep.runner import finished

    recipe = read(told.recipe, told.overrides)
    folder = told.out or Path("runs") / Path(told.recipe).stem
    command = shlex.join(["fewstep", verb, *argv])
    if finished(recipe, folder):
        console.out.print(f"{folder} is finished: {recipe.fit.steps} steps")
        return 0
    if not run(recipe, folder, what=folder.name, track=told.track):
        console.out.print(f"stopped; to resume: {command}")
        return 0
    from fewstep.distributed import first_rank
    from fewstep.report import report_run

    if first_rank():
        report_run(folder, command)
    console.out.print(f"{folder}: model.safetensors and report.html")
    return 0


def run(recipe: "Recipe", folder: Path, *, what: str, track: Sequence[str] = ()) -> bool:
    """Train to the end with a progress bar; False when the user stopped it."""
    from fewstep.runner import run_recipe

    with (
        closing(_Tracking(folder, track)) as tracking,
        console.bar(what, recipe.fit.steps) as bar,
        console.stopping() as stop,
        closing(run_recipe(recipe, folder)) as steps,
    ):
        for progress in steps:
            tracking.forward(progress.step)
            loss = progress.numbers.get("student/loss")
            bar(progress.step, "" if loss is None else f"loss {loss:.4g}")
            if stop.asked and progress.step < recipe.fit.steps:
                return False
    return True


class _Tracking:
    """The followers of a run, if any; opened at its first step, when its folder is its own."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = list(dict.fromkeys(names))
        self.followers: list[Follower] = []
        if self.names:
            from fewstep.trackers import require

            require(self.names)

    def forward(self, step: int) -> None:
        """Send what the run folder has gained by this step."""
        if self.names:
            self._open(step)
        for follower in self.followers:
            follower.forward()

    def close(self) -> None:
        for follower in self.followers:
            follower.close()

    def _open(self, step: int) -> None:
        from fewstep.distributed import first_rank
        from fewstep.runs import Run
        from fewstep.trackers import follow

        names, self.names = self.names, []
        if first_rank():
            opened = (follow(Run(self.folder), name, step) for name in names)
            self.followers = [follower for follower in opened if follower]
        for follower in self.followers:
            console.out.print(f"tracked: {follower.tracker.where}")


def recipe_asked(argv: Sequence[str]) -> bool:
    """Whether help is asked for a recipe, not for the verb."""
    return bool({"-h", "--help"} & set(argv)) and any(not a.startswith("-") for a in argv)


def _recipe_help(argv: Sequence[str], verb: str) -> int:
    """Every key of a recipe with its value and meaning, the method's own first."""
    from rich.table import Table

    from fewstep.recipe import explained, read

    name = next(a for a in argv if not a.startswith("-"))
    recipe = read(name)
    console.out.print(f"fewstep {verb} {name} [key=value ...] [--out DIR]\n")
    console.out.print(f"[bold]{recipe.about.title or name}[/]  {recipe.about.paper}\n")
    table = Table(box=None, pad_edge=False)
    for heading in ("key", "value here", "meaning"):
        table.add_column(heading, overflow="fold")
    for key, value, meaning in explained(recipe):
        table.add_row(key, value, meaning)
    console.out.print(table, soft_wrap=False)
    return 0
