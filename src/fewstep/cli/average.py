"""`fewstep average RUN --length 0.1 [-o FILE]`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fewstep.cli import console
from fewstep.errors import InputError
from fewstep.paths import check_kind, check_writable
from fewstep.ranges import ProfileLength

MAX_ERROR = 0.05
"""A profile that is further from the one asked for gets a line that says so."""


@dataclass(frozen=True)
class Options:
    """Average the weights of a run over another length than it was trained with.

    The run needs snapshots, from a recipe with fit.ema_lengths.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    length: ProfileLength
    """Standard deviation of the average's power profile, as a share of the training: 0.001 to 0.28.
    Larger averages over more of the training."""
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """The .safetensors file to write, which other commands take in place of a run; by default
    average-LENGTH.safetensors in the run folder."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep average`. Returns the exit code."""
    options = console.options(Options, "average", argv)
    from fewstep import runs
    from fewstep.averaging import reconstruct
    from fewstep.run_folder import Run

    check_kind(options.run, "run")
    run = Run(options.run)
    if not run.folder.is_dir():
        raise InputError(f"{options.run} is no run folder, which has the snapshots of averages")
    out = options.out or run.folder / f"average-{options.length:g}.safetensors"
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must be the name of a .safetensors file")
    place, own = out.resolve(), (run.model_file, run.best_file, run.state_file)
    if place in {path.resolve() for path in own} or place.parent == run.averages.resolve():
        raise InputError(f"--out {out} is the place of the run's own files: give another name")
    check_writable(out, "--out")
    generator, note = runs.load(run.folder), runs.describe(run.folder)
    with console.bar("average", len(run.snapshots())) as update:
        average = reconstruct(run, options.length, update=update)
    try:
        generator.load_state_dict({**generator.state_dict(), **average.weights})
    except RuntimeError as error:
        raise InputError(
            f"the snapshots in {run.averages} are of another network than {run.model_file}: "
            "restore those of this run"
        ) from error
    runs.save_generator(out, generator, note.get("recipe"), note.get("pins", {}))
    console.out.print(
        f"{out}: length {options.length:g}, of {average.snapshots} snapshots; its profile differs "
        f"by {average.error:.1%}"
    )
    if average.error > MAX_ERROR:
        console.out.print(
            "the snapshots are too far apart for this length: choose one closer to fit.ema_lengths,"
            " or train with more fit.ema_snapshots"
        )
    return 0
