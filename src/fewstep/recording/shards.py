"""Record shard by shard, on one process or on all those of `torchrun`."""

from collections import abc
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep import __version__, distributed, store, threads
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.locks import remove_leftover_lock
from fewstep.plugins import name_of, names, resolve
from fewstep.recording.settings import Recording, make_schema, shard_rows
from fewstep.recording.tiles import Tiles
from fewstep.store import Address
from fewstep.store.folder import LocalFolder
from fewstep.store.manifest import MANIFEST
from fewstep.tables import to_table
from fewstep.text.base import encoder_hash
from fewstep.value_range import ValueRange, stored_range, sum_ranges


class Progress(NamedTuple):
    """Progress of this process."""

    done: int
    """Number of rows that it has recorded, in earlier runs too."""
    total: int
    """Number of rows that it records in all."""


def record(
    generator: Generator,
    folder: Address,
    recording: Recording,
    *,
    teacher: str,
    batch: int | None = None,
) -> abc.Generator[Progress, None, ValueRange]:
    """Record pairs shard by shard; yields the progress at the start and after each batch.

    Returns the range of the images that all processes have recorded in this call.

    Row i has class i modulo the number of classes, and a prompt likewise, unless the recording
    lists others. `teacher` is the `runs.network_hash` of the generator, which is stored as
    provenance. Under `torchrun` each process records its own shards,
    and rank 0 finishes the store. `batch` is the largest number of rows between two yields, by
    default that of a `Tiles` tile; it changes neither the store nor the speed.

    Raises: InputError for a stochastic sampler, a folder with other data or that another process
    records into, images with NaN, and too
    many values out of range. Those of the first tile are checked before anything is written, those
    of all images of this call before the last shard is written.
    """
    _check_sampler(generator, recording)
    if batch is not None and batch < 1:
        raise InputError(f"cannot record in batches of {batch}: give at least 1")
    with distributed.lock_together(_unfinished_folder(folder)):
        return (yield from _record(generator, folder, recording, teacher, batch))


def _unfinished_folder(address: Address) -> Path | None:
    """The local folder of a store that is not finished; None for another one."""
    folder = store.open_folder(address)
    if not isinstance(folder, LocalFolder):
        return None
    if MANIFEST not in folder.sizes():
        return folder.root
    remove_leftover_lock(folder.root)
    return None


def _record(
    generator: Generator, folder: Address, recording: Recording, teacher: str, batch: int | None
) -> abc.Generator[Progress, None, ValueRange]:
    rank, ranks = distributed.world()
    tiles = Tiles(generator, recording)
    distributed.check_equal(
        {"the teacher's hash": teacher, "the store": folder, **asdict(recording)}
    )
    writer = distributed.run_together(lambda: _open_writer(tiles, folder, teacher))
    distributed.check_equal({f"the list of missing records in {folder}": writer.missing()})
    size = writer.plan.shard_size
    total = sum(len(writer.plan.records(k)) for k in range(rank, writer.plan.shards, ranks))
    missing = [rows for rows in writer.missing() if rows.start // size % ranks == rank]
    done = total - sum(map(len, missing))
    yield Progress(done, total)
    values = ValueRange()
    with closing(_write_shards(writer, missing, tiles, batch)) as batches:
        for rows, images in batches:
            done, values = done + len(rows), values + tiles.range_of(images)
            if done == total:  # before the last shard is written, so that no later call finishes
                values = _check_all(values, tiles, folder)
            yield Progress(done, total)
    if not missing:
        values = _check_all(values, tiles, folder)
    distributed.wait()
    tally = distributed.sum_numbers(writer.tally().to(generator.device))
    if rank == 0:
        writer.finish(tally.cpu())
    distributed.wait()
    return values


def _open_writer(tiles: Tiles, folder: Address, teacher: str) -> store.Writer:
    """The writer of the store, after checks of the first tile and of the folder."""
    first = stored_range(folder) or _check_first(tiles, folder)
    writer = _writer(tiles, folder, teacher, first)
    _check_first(tiles, folder, first)  # a stored one only if the folder has these settings
    return writer


def _check_first(tiles: Tiles, folder: Address, values: ValueRange | None = None) -> ValueRange:
    """The range of the images of the first tile, by default computed, after its check."""
    values = values or tiles.range_of(tiles.records(range(tiles.size))["x0"])
    return tiles.check(values, f"the first {tiles.size} images", f"{folder} is not recorded")


def _check_all(values: ValueRange, tiles: Tiles, folder: Address) -> ValueRange:
    """The range of the images that all processes have recorded in this call, after its check."""
    values = sum_ranges(values, tiles.generator.device)
    return tiles.check(values, "the images", f"{folder} is not finished")


def _check_sampler(generator: Generator, recording: Recording) -> None:
    name = name_of("sampler", type(generator.step))
    if recording.chunks and name != "ring":
        raise InputError(f"the sampler {name} has no chunks: record a circuit with --sampler ring")
    if recording.states and name == "ring":
        raise InputError("the sampler ring has no noisy images (--states): record it with --chunks")
    if not generator.step.deterministic:
        samplers = {name: resolve("sampler", name) for name in names("sampler")}
        deterministic = [name for name, kind in samplers.items() if kind.deterministic]
        raise InputError(
            f"{name} draws fresh noise, so that its images are no function of the starting noise, "
            f"as pairs need; record with one of: {', '.join(deterministic)}"
        )


def _write_shards(
    writer: store.Writer, missing: list[range], tiles: Tiles, batch: int | None
) -> abc.Generator[tuple[range, Tensor]]:
    """Compute and write each missing shard. Yields ranges of rows and their images."""
    with threads.workers(1) as pool:  # writes a shard while the next one is computed
        pending: Future[None] | None = None
        for rows in missing:
            parts: list[dict[str, Tensor]] = []
            for piece in tiles.pieces(rows, batch):
                parts.append(tiles.records(piece))
                yield piece, parts[-1]["x0"]
            records = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            if pending:
                pending.result()
            pending = pool.submit(writer.write, rows.start, records)
        if pending:
            pending.result()


def _writer(tiles: Tiles, folder: Address, teacher: str, first: ValueRange) -> store.Writer:
    generator, recording = tiles.generator, tiles.recording
    times = generator.grid(recording.steps, generator.denoiser).tolist()
    description = generator.describe()
    guidance = ("guidance", "guidance_interval", "autoguidance")
    provenance = {
        "teacher": teacher,
        "sampler": to_table(generator.step),
        "times": times,
        **{key: description[key] for key in guidance if key in description},
        "precision": generator.denoiser.precision,
        "seed": recording.seed,
        "version": __version__,
        "class_names": list(generator.spec.class_names),
    }
    decoder = generator.decoder
    provenance |= {"autoencoder": decoder.autoencoder} if decoder else {}
    provenance |= {"range": asdict(first)} if first.values else {}
    if recording.states:
        provenance["states"] = [times[point] for point in recording.state_points]
    if recording.chunks:
        provenance |= {"steps": recording.steps, "chunks": recording.chunks}
    if generator.spec.text:
        provenance |= {
            "prompts": [*tiles.prompt_numbers],
            "text_encoder": {
                "name": name_of("text-encoder", type(generator.spec.text)),
                "sha256": encoder_hash(generator.spec.text),
            },
        }
    rows = shard_rows(generator, recording)
    return store.Writer(
        folder,
        schema=make_schema(generator, recording),
        count=recording.count,
        # whole tiles, if one fits, so that no tile is computed twice for two shards
        shard_size=rows // tiles.size * tiles.size or rows,
        provenance=provenance,
    )
