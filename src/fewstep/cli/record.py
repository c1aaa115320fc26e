"""`fewstep record RUN --out DIR -n N`, `record --verify DIR`, `record --info DIR`."""

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fewstep.cli import console
from fewstep.errors import InputError


@dataclass(frozen=True)
class Options:
    """Record noise and images of a deterministic teacher; the same command again resumes."""

    run: tyro.conf.Positional[str | None] = None
    """A run folder, a weights file or an address."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder to record into."""
    count: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 50_000
    """Pairs to record."""
    steps: int = 18
    """Steps of the sampler."""
    sampler: str = "heun"
    """transfer, heun or multistep: the noise-to-image map must be a function."""
    batch: int = 256
    """Images at once: changes the speed, not the result."""
    seed: int = 0
    """Of the noise."""
    verify: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Check every byte of a store instead, and name what is damaged."""
    info: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Tell what a store holds instead."""


def main(argv: Sequence[str]) -> int:
    """Record, verify or tell; 2 when a store is damaged."""
    told = console.options(Options, "record", argv)
    if told.verify:
        return _verify(told.verify)
    if told.info:
        return _info(told.info)
    if told.run is None or told.out is None:
        raise InputError("record needs a RUN and --out DIR, or --verify DIR, or --info DIR")
    if not run(
        told.run,
        told.out,
        count=told.count,
        steps=told.steps,
        sampler=told.sampler,
        batch=told.batch,
        seed=told.seed,
    ):
        console.out.print("stopped; the same command resumes")
        return 0
    console.out.print(f"{told.out}: {told.count} pairs")
    return 0


def run(
    address: str, folder: Path, *, count: int, steps: int, sampler: str, batch: int, seed: int
) -> bool:
    """Record with a progress bar; False when the user stopped it."""
    from fewstep import runs
    from fewstep.experiment import default_device
    from fewstep.recording import record
    from fewstep.sampling import named_step

    generator = runs.load(address).sampled(step=named_step(sampler)).to(default_device())
    rows = record(
        generator,
        folder,
        count=count,
        steps=steps,
        teacher=runs.weights_hash(generator),
        batch=batch,
        seed=seed,
    )
    with console.bar("record", count) as bar, console.stopping() as stop, closing(rows):
        for done in rows:
            bar(done)
            if stop.asked and done < count:
                return False
    return True


def _verify(folder: Path) -> int:
    from fewstep import store

    damaged = store.verify(folder)
    for line in damaged:
        print(line, file=sys.stderr)
    console.out.print(f"{folder}: {len(damaged)} damaged" if damaged else f"{folder}: whole")
    return 2 if damaged else 0


def _info(folder: Path) -> int:
    from fewstep import store

    reader = store.Reader(folder)
    told = {
        "records": len(reader),
        "hash": reader.hash,
        "schema": {name: str(codec) for name, codec in reader.schema.items()},
        "provenance": dict(reader.provenance),
    }
    console.out.print_json(json.dumps(told))
    return 0
