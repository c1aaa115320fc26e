"""`fewstep record RUN --out DIR -n N`, `record --verify DIR`, `record --info DIR`."""

import fnmatch
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from fewstep.cli import console
from fewstep.cli.guidance import GuidanceOptions
from fewstep.errors import InputError
from fewstep.paths import check_kind, check_writable_folder
from fewstep.ranges import (
    Count,
    CountOrZero,
    Positive,
    Precision,
    Rows,
    SampleSeed,
    SamplingSteps,
)

if TYPE_CHECKING:
    from fewstep.conditions import Turns
    from fewstep.generator import Generator
    from fewstep.recording import Recording
    from fewstep.value_range import ValueRange


@dataclass(frozen=True)
class Options(GuidanceOptions):
    """Record noise and images of a deterministic teacher in a store.

    The same command again resumes. Under `torchrun --nproc-per-node N -m fewstep record ...`
    N processes share the work.
    """

    run: Annotated[str | None, tyro.conf.Positional, console.run_option()] = None
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """The folder to record into, or an address such as s3://bucket/folder."""
    count: Annotated[Count, tyro.conf.arg(aliases=["-n"])] = 50_000
    """Number of pairs to record."""
    steps: SamplingSteps = 18
    """Number of sampler steps."""
    sampler: Annotated[
        str, console.sampler_option("A deterministic sampler; ring is for a circuit")
    ] = "heun"
    grid: Annotated[str | None, console.grid_option()] = None
    clip: Positive | None = None
    """Clamp the predicted images to ±CLIP, such as 1; by default as the run's sampler does."""
    precision: Precision = "f32"
    """Number format in which the images are computed; bf16 is faster on GPUs and on CPUs with
    instructions for it."""
    allow_out_of_range: bool = False
    """Record images even if more than 1 % of their values are beyond ±1.5."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """For a run that reads prompts: a text file with one on each line, which the images have in
    turn; by default the captions of the run's training set, in a random order."""
    data: Annotated[
        str | None,
        console.data_option(
            "For a run that reads prompts: the set with the captions, by default the training set; "
            "required if its images have moved"
        ),
    ] = None
    states: CountOrZero = 0
    """Number of intermediate states to record of each path from noise to image."""
    chunks: CountOrZero = 0
    """For a circuit with --sampler ring: also record the first hidden state and this many sums of
    updates, of which each covers an equal part of the ring."""
    codec: str | None = None
    """Codec of the images: u8, f16, raw, int8 or int8:PERCENTILE; by default u8 for images (f16
    with --chunks), raw for points."""
    batch: Rows | None = None
    """Images between two updates of the progress bar. It has no effect on the store or the speed,
    because the network always computes tiles of a fixed size."""
    seed: SampleSeed = 0
    """Seed of the noise."""
    resume: bool = True
    """Complete an unfinished store; --no-resume raises an error for a folder that is not empty."""
    verify: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Instead of recording, check every byte of a store and list its damaged records."""
    info: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Instead of recording, print a summary of a store as JSON."""
    convert: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Instead of recording, convert a folder of Denoising Circuits' sample_*.zst files into a store
    at --out, or a store into such a folder."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep record`. Returns the exit code, 2 for a damaged store."""
    options = console.options(Options, "record", argv, negations=True)
    options.check()
    if options.verify:
        return _verify(options.verify)
    if options.info:
        return _info(options.info)
    if options.convert and options.out:
        return _convert(options.convert, options.out)
    if options.run is None or options.out is None:
        raise InputError(
            "record needs RUN and --out DIR; or --convert DIR and --out DIR; or --verify DIR; or "
            "--info DIR"
        )
    if "://" not in options.out:
        check_writable_folder(Path(options.out), "--out")
    from fewstep.recording import Recording
    from fewstep.store import open_folder
    from fewstep.value_range import MAX_SHARE

    if not options.resume and open_folder(options.out).sizes():
        raise InputError(
            f"{options.out} is not empty, which --no-resume does not allow; give another --out"
        )
    recording = Recording(
        options.count,
        options.steps,
        options.states,
        options.codec,
        options.chunks,
        options.seed,
        max_out_of_range=1.0 if options.allow_out_of_range else MAX_SHARE,
    )
    try:
        with console.bar("record", options.count, stoppable=True) as update:
            values = run(
                options.run,
                options.out,
                recording,
                update,
                sampler=options.sampler,
                grid=options.grid,
                clip=options.clip,
                precision=options.precision,
                guidance=options,
                batch=options.batch,
                prompts=options.prompts,
                data=options.data,
            )
    except console.Stopped:
        console.out.print("stopped; the same command resumes")
        return 0
    text = f"; {values.text('the images')}" if values.values else ""
    console.out.print(f"{options.out}: {options.count} pairs{text}")
    return 0


def run(
    address: str,
    folder: str | Path,
    recording: "Recording",
    update: console.Update,
    *,
    sampler: str,
    grid: str | None = None,
    clip: float | None = None,
    precision: Precision = "f32",
    guidance: GuidanceOptions | None = None,
    batch: int | None = None,
    prompts: str | None = None,
    data: str | None = None,
) -> "ValueRange":
    """Record until the end and report progress to `update`, which may raise Stopped to stop it.

    `prompts` is the file of the prompts, `data` the set with the captions; see `Options`. Returns
    the range of the images that are recorded now.
    """
    from dataclasses import replace

    from fewstep import runs
    from fewstep.distributed import device, run_together
    from fewstep.evaluation import exhaust
    from fewstep.recording import record
    from fewstep.sampler_choices import with_sampler_choices

    generator = run_together(lambda: runs.load(address))
    teacher = runs.network_hash(generator)
    turns = run_together(lambda: _turns(address, generator, recording.count, prompts, data))
    if turns:
        recording = replace(recording, prompts=turns.prompts, labels=turns.labels)
    recipe = runs.describe(address).get("recipe")
    generator = with_sampler_choices(generator, recipe, sampler=sampler, grid=grid, clip=clip)
    if guidance:
        generator = run_together(lambda: guidance.apply(generator, recipe))
    console.warn_if_slow(precision)
    generator = generator.with_precision(precision).to(device())
    with closing(record(generator, folder, recording, teacher=teacher, batch=batch)) as rows:
        return exhaust(rows, lambda progress: update(progress.done, total=progress.total))


def _turns(
    address: str, generator: "Generator", count: int, prompts: str | None, data: str | None
) -> "Turns | None":
    """The prompts of the rows; None for a generator without text."""
    from fewstep.conditions import Turns, captions_in_turn, read_prompts
    from fewstep.loading import load_run, reference_images

    spec = generator.spec
    if spec.text is None:
        if prompts or data:
            raise InputError(
                f"{address} reads no prompts: leave out {'--prompts' if prompts else '--data'}"
            )
        return None
    if prompts:
        if data:
            raise InputError("--prompts replaces the captions of --data: give one of the two")
        return Turns(tuple(read_prompts(Path(prompts))))
    run = load_run(address)
    if run.recipe is None and data is None:
        raise InputError(
            f"{address} contains no recipe, so the captions of its training are unknown: name a "
            "set with captions by --data, or a file by --prompts"
        )
    return captions_in_turn(reference_images(run, data), spec, count=count)


def _verify(folder: str) -> int:
    from fewstep import store

    check_kind(folder, "store")
    steps = store.iter_verify(folder)
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

    unfinished = store.read_unfinished(store.open_folder(folder))
    if unfinished:
        plan, shards = unfinished
        summary = {"finished": False, "recorded": sum(shard.count for shard in shards)}
    else:
        reader = store.Reader(folder)
        plan, shards = reader.manifest.plan, reader.manifest.shards
        summary = {"finished": True, "hash": reader.hash}
    summary |= {
        "records": plan.count,
        "bytes": sum(shard.bytes for shard in shards),
        "schema": {name: str(codec) for name, codec in plan.schema.items()},
        "provenance": _summarize(plan.provenance),
    }
    console.out.print_json(json.dumps(summary))
    return 0


def _summarize(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance with the number of prompts in place of their list."""
    prompts = provenance.get("prompts")
    if not isinstance(prompts, list):
        return dict(provenance)
    return {**provenance, "prompts": len(cast(list[Any], prompts))}


def _convert(source: str, target: str) -> int:
    from fewstep import store
    from fewstep.circuits import sample_files
    from fewstep.store.manifest import MANIFEST

    names = store.open_folder(source).sizes()
    if MANIFEST in names:
        total = len(store.Reader(source))
        rows = sample_files.from_store(source, target)
    else:
        total = len(fnmatch.filter(names, sample_files.SAMPLES))
        rows = sample_files.to_store(source, target)
    with console.bar("convert", total) as bar:
        for done in rows:
            bar(done)
    console.out.print(f"{target}: {total} samples")
    return 0
