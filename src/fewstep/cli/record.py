"""`fewstep record RUN --out DIR -n N`, `record --verify DIR`, `record --info DIR`."""

import fnmatch
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fewstep.cli import console
from fewstep.errors import InputError

if TYPE_CHECKING:
    from fewstep.recording import Recording


@dataclass(frozen=True)
class Options:
    """Record noise and images of a deterministic teacher; the same command again resumes.

    Under `torchrun --nproc-per-node N -m fewstep record ...` N processes share the work.
    """

    run: tyro.conf.Positional[str | None] = None
    """A run folder, a weights file, diffusers:FOLDER or diffusers:HUB_NAME."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder to record into, or an address such as s3://bucket/folder."""
    count: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 50_000
    """Pairs to record."""
    steps: int = 18
    """Steps of the sampler."""
    sampler: str = "heun"
    """transfer, heun, multistep or a circuit's ring: the noise-to-image map must be a function."""
    guidance: float = 1.0
    """Weight of classifier-free guidance; 1: none."""
    states: int = 0
    """States to keep of each path, between its noise and its image."""
    chunks: int = 0
    """Of a circuit, with --sampler ring: record its latents too, as this many sums of updates."""
    codec: str | None = None
    """u8, f16, raw, int8 or int8:PERCENTILE; by default u8 for images (f16 beside latents), raw for
    points."""
    batch: int | None = None
    """Images between two steps of the progress bar; neither the store nor the speed depends on it,
    since the network always sees whole tiles."""
    seed: int = 0
    """Of the noise."""
    resume: bool = True
    """Complete what the folder holds already; else refuse one that holds anything."""
    verify: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Check every byte of a store instead, and name what is damaged."""
    info: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Tell what a store holds instead."""
    convert: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Copy a folder of Denoising Circuits' sample_*.zst into a store at --out, or such a store into
    such a folder, instead."""


def main(argv: Sequence[str]) -> int:
    """Record, verify, tell or convert; 2 when a store is damaged."""
    told = console.options(Options, "record", argv, opposites=True)
    if told.verify:
        return _verify(told.verify)
    if told.info:
        return _info(told.info)
    if told.convert and told.out:
        return _convert(told.convert, told.out)
    if told.run is None or told.out is None:
        raise InputError(
            "record needs a RUN and --out DIR; or --convert DIR and --out DIR, or --verify DIR, or "
            "--info DIR"
        )
    from fewstep.recording import Recording
    from fewstep.store import open_folder

    if not told.resume and open_folder(told.out).sizes():
        raise InputError(f"{told.out} is not empty, and --no-resume was asked; give another --out")
    wanted = Recording(told.count, told.steps, told.states, told.codec, told.chunks, told.seed)
    if not run(
        told.run,
        told.out,
        wanted,
        sampler=told.sampler,
        guidance=told.guidance,
        batch=told.batch,
    ):
        console.out.print("stopped; the same command resumes")
        return 0
    console.out.print(f"{told.out}: {told.count} pairs")
    return 0


def run(
    address: str,
    folder: str | Path,
    wanted: "Recording",
    *,
    sampler: str,
    guidance: float = 1.0,
    batch: int | None = None,
) -> bool:
    """Record with a progress bar; False when the user stopped it."""
    from fewstep import runs
    from fewstep.distributed import device
    from fewstep.recording import record
    from fewstep.sampling import renamed_step

    generator = runs.load(address)
    teacher = runs.weights_hash(generator)
    step = renamed_step(generator.step, sampler)
    generator = generator.with_sampler(step=step).to(device())
    if guidance != 1:
        generator = generator.with_guidance(guidance)
    rows = record(generator, folder, wanted, teacher=teacher, batch=batch)
    with console.stopping() as stop, closing(rows):
        start = next(rows)
        with console.bar("record", start.total, start.done) as bar:
            for now in rows:
                bar(now.done)
                if stop.asked and now.done < now.total:
                    return False
    return True


def _verify(folder: str) -> int:
    from fewstep import store

    steps = store.verifying(folder)
    start = next(steps)
    damaged = list(start.lines)
    with console.bar("verify", start.total) as bar:
        for step in steps:
            damaged += step.lines
            bar(step.done)
    for line in damaged:
        print(line, file=sys.stderr)
    console.out.print(f"{folder}: {len(damaged)} damaged" if damaged else f"{folder}: whole")
    return 2 if damaged else 0


def _info(folder: str) -> int:
    from fewstep import store

    begun = store.unfinished(store.open_folder(folder))
    if begun:
        plan, shards = begun
        told = {"finished": False, "recorded": sum(shard.count for shard in shards)}
    else:
        reader = store.Reader(folder)
        plan, shards = reader.manifest.plan, reader.manifest.shards
        told = {"finished": True, "hash": reader.hash}
    told |= {
        "records": plan.count,
        "bytes": sum(shard.bytes for shard in shards),
        "schema": {name: str(codec) for name, codec in plan.schema.items()},
        "provenance": dict(plan.provenance),
    }
    console.out.print_json(json.dumps(told))
    return 0


def _convert(source: str, target: str) -> int:
    from fewstep import store
    from fewstep.store import circuits
    from fewstep.store.manifest import MANIFEST

    names = store.open_folder(source).sizes()
    if MANIFEST in names:
        total = len(store.Reader(source))
        rows = circuits.from_store(source, target)
    else:
        total = len(fnmatch.filter(names, circuits.SAMPLES))
        rows = circuits.to_store(source, target)
    with console.bar("convert", total) as bar:
        for done in rows:
            bar(done)
    console.out.print(f"{target}: {total} samples")
    return 0
