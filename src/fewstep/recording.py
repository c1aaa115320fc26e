"""Record a generator's samples into a store: pairs of noise, stored as its seed, and image.

The noise of row i is drawn from seed `FIRST_SEED + seed·2³² + i`, so that a record needs only the
image, its label and that seed. No other code uses these seeds: a student is never scored on noise
that it was trained on. The store's bytes depend neither on batch sizes nor on interruptions or the
number of processes.
"""

from collections import abc
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewstep import __version__, distributed, store, threads
from fewstep.circuits.rings import ring_records, ring_schema
from fewstep.circuits.view import Circuit
from fewstep.condition import row_labels
from fewstep.drawing import class_labels, seeds
from fewstep.errors import InputError
from fewstep.finite import check_finite
from fewstep.formatting import quantity
from fewstep.generator import Generator
from fewstep.noise import noise_from_seeds
from fewstep.plugins import name_of, names, resolve
from fewstep.store import Address
from fewstep.tables import to_table
from fewstep.value_range import ValueRange, stored_range, sum_ranges

FIRST_SEED = 1 << 62
SHARD_BYTES = 256 << 20  # a shard is in memory, uncompressed, while it is computed
CODECS = ("u8", "f16", "int8", "raw")


class Progress(NamedTuple):
    """Progress of this process."""

    done: int
    """Number of rows that it has recorded, in earlier runs too."""
    total: int
    """Number of rows that it records in all."""


@dataclass(frozen=True)
class Recording:
    """Settings of a recording: what is recorded, and how it is encoded."""

    count: int
    """Number of pairs."""
    steps: int
    """Steps of the generator's sampler."""
    states: int = 0
    """Number of intermediate noisy images x_t to record, evenly spread over the sampler's steps."""
    codec: str | None = None
    """Codec of the images: u8, f16, raw, int8 or int8:PERCENTILE. The default is f16 with chunks,
    raw for points, else u8. With u8, noisy images are recorded as f16: they exceed u8's range."""
    chunks: int = 0
    """Number K of residual chunks, for a circuit with the sampler `ring`; 0 records none. The steps
    are divided into K equal parts, and a chunk is the change of the hidden state in one of them.
    Records also have the initial state, in 8 bits as the chunks, and the noise itself, rounded to
    f16 before sampling, so that they can be converted to Denoising Circuits' files."""
    seed: int = 0
    """Seed of the noise."""
    shard: int = 1024
    """Records per shard; fewer if records are large. A killed process loses at most two shards: the
    one that it computes and the one that it writes."""
    max_out_of_range: float = 1.0
    """Largest share of the images' values that may be beyond ±1.5; see `value_range.MAX_SHARE`."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.steps < 1:
            raise InputError(
                f"cannot record {self.count} pairs of {self.steps} steps: both must be at least 1"
            )
        seeds(self.seed, range(0))
        if self.chunks < 0 or (self.chunks and self.steps % self.chunks):
            raise InputError(
                f"{self.steps} steps cannot be divided into {self.chunks} equal chunks: choose a "
                "divisor of the steps, or 0 for none"
            )
        if not 0 <= self.states < self.steps:
            raise InputError(
                f"cannot record {self.states} states: {self.steps} steps have "
                f"{self.steps - 1} intermediate images; choose from 0 to {self.steps - 1}"
            )

    @property
    def state_points(self) -> list[int]:
        """Indices of the grid's times whose noisy images are recorded."""
        return [round(k * self.steps / (self.states + 1)) for k in range(1, self.states + 1)]


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

    Row i has class i modulo the number of classes. `teacher` is the `runs.network_hash` of the
    generator, which is stored as provenance. Under `torchrun` each process records its own shards,
    and rank 0 finishes the store. `batch` is the largest number of rows between two yields, by
    default that of a `Tiles` tile; it changes neither the store nor the speed.

    Raises: InputError for a stochastic sampler, a folder with other data, images with NaN, and too
    many values out of range. Those of the first tile are checked before anything is written, those
    of all images of this call before the last shard is written.
    """
    _check_sampler(generator, recording)
    if batch is not None and batch < 1:
        raise InputError(f"cannot record in batches of {batch}: give at least 1")
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
            done, values = done + len(rows), values + ValueRange.of(images)
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


def _open_writer(tiles: "Tiles", folder: Address, teacher: str) -> store.Writer:
    """The writer of the store, after checks of the first tile and of the folder."""
    first = stored_range(folder) or _check_first(tiles, folder)
    writer = _writer(tiles.generator, folder, tiles.recording, teacher, first, tile=tiles.size)
    _check_first(tiles, folder, first)  # a stored one only if the folder has these settings
    return writer


def _check_first(tiles: "Tiles", folder: Address, values: ValueRange | None = None) -> ValueRange:
    """The range of the images of the first tile, by default computed, after its check."""
    values = values or ValueRange.of(tiles.records(range(tiles.size))["x0"])
    return tiles.check(values, f"the first {tiles.size} images", f"{folder} is not recorded")


def _check_all(values: ValueRange, tiles: "Tiles", folder: Address) -> ValueRange:
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
    writer: store.Writer, missing: list[range], tiles: "Tiles", batch: int | None
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


def _writer(
    generator: Generator,
    folder: Address,
    recording: Recording,
    teacher: str,
    first: ValueRange,
    *,
    tile: int,
) -> store.Writer:
    times = generator.grid(recording.steps, generator.denoiser).tolist()
    provenance = {
        "teacher": teacher,
        "sampler": to_table(generator.step),
        "times": times,
        "guidance": generator.describe()["guidance"],
        "precision": generator.denoiser.precision,
        "seed": recording.seed,
        "version": __version__,
        "class_names": list(generator.spec.class_names),
    }
    provenance |= {"range": asdict(first)} if first.values else {}
    if recording.states:
        provenance["states"] = [times[point] for point in recording.state_points]
    if recording.chunks:
        provenance |= {"steps": recording.steps, "chunks": recording.chunks}
    rows = _shard_rows(generator, recording)
    return store.Writer(
        folder,
        schema=_schema(generator, recording),
        count=recording.count,
        # whole tiles, if one fits, so that no tile is computed twice for two shards
        shard_size=rows // tile * tile or rows,
        provenance=provenance,
    )


def _schema(generator: Generator, recording: Recording) -> dict[str, store.Codec]:
    """Codecs of the tensors of a record."""
    shape, classes = generator.spec.shape, generator.spec.classes
    # u8 is as exact as an image file; points are not images
    default = "f16" if recording.chunks else "u8" if len(shape) == 3 else "raw"
    name = recording.codec or default
    x0, number = _codec(name, shape, channels=1), store.Raw(torch.int64)
    if recording.chunks:
        state = Circuit(generator.denoiser).state_shape
        labels = {"label": number} if classes else {}  # Denoising Circuits' files have none
        return {**labels, **ring_schema(shape, state, recording.chunks, x0=x0)}
    schema: dict[str, store.Codec] = {"x0": x0, "label": number, "seed": number}
    if recording.states:
        path = "f16" if name == "u8" else name
        schema["states"] = _codec(path, (recording.states, *shape), channels=2)
    return schema


def _shard_rows(generator: Generator, recording: Recording) -> int:
    """Largest number of records in a shard."""
    floats = torch.Size(generator.spec.shape).numel() * (1 + recording.states)
    if recording.chunks:
        state = Circuit(generator.denoiser).state_shape
        floats += torch.Size(state).numel() * (1 + recording.chunks)
    return max(1, min(recording.shard, SHARD_BYTES // (4 * floats)))


def _codec(name: str, shape: tuple[int, ...], *, channels: int) -> store.Codec:
    kind, _, suffix = name.partition(":")
    if kind == "int8":
        try:
            percentile = float(suffix or 100)
        except ValueError:
            raise InputError(f"unknown codec {name!r}: write int8, or int8:99.5 to clip") from None
        return store.Int8(shape, channels=min(channels, len(shape)), percentile=percentile)
    if name == "raw":
        return store.Raw(torch.float32, shape)
    if name not in CODECS:
        raise InputError(f"unknown codec {name!r}; choose one of: {', '.join(CODECS)}")
    return store.U8(shape) if name == "u8" else store.F16(shape)


class Tiles:
    """A generator's records, computed in tiles of T rows.

    GPU and CPU kernels round differently for other batch sizes, which would change some pixels. The
    network's input is therefore always a whole tile: rows k·T … (k + 1)·T − 1.
    """

    def __init__(self, generator: Generator, recording: Recording) -> None:
        self.generator = generator
        self.recording = recording
        gpu = generator.device.type != "cpu"
        rows = (2**20 if gpu else 2**17) // torch.Size(generator.spec.shape).numel()
        if recording.chunks:  # states are many times larger than their images
            rows = min(rows, _shard_rows(generator, recording))
        self.size: int = max(1, min(512 if gpu else 128, 2 ** (max(rows, 1).bit_length() - 1)))
        self._cached_tile: tuple[int, dict[str, Tensor]] = (-1, {})

    def records(self, rows: range) -> dict[str, Tensor]:
        """The records of `rows`, which must lie in one tile."""
        tile = rows.start // self.size
        if self._cached_tile[0] != tile:
            rows_of_tile = range(tile * self.size, (tile + 1) * self.size)
            self._cached_tile = tile, self._sample(rows_of_tile)
        part = slice(rows.start - tile * self.size, rows.stop - tile * self.size)
        return {key: x[part] for key, x in self._cached_tile[1].items()}

    def pieces(self, rows: range, batch: int | None) -> Iterator[range]:
        """Divide `rows` at the ends of tiles, into ranges of at most `batch` rows."""
        first = rows.start
        while first < rows.stop:
            end = (first // self.size + 1) * self.size
            stop = min(rows.stop, end, first + (batch or self.size))
            yield range(first, stop)
            first = stop

    def check(self, values: ValueRange, noun: str, consequence: str) -> ValueRange:
        """Return the range of images.  Raises: InputError if too many values are out of range."""
        if values.share <= self.recording.max_out_of_range:
            return values
        step = self.generator.step
        clip = "a clip (--clip 1), " if getattr(step, "clip", 0) is None else ""
        raise InputError(
            f"{values.text(noun)} with {quantity(self.recording.steps, 'step')} of "
            f"{name_of('sampler', type(step))}, so {consequence}: record with {clip}another "
            "sampler or more steps, or allow it (--allow-out-of-range)"
        )

    @torch.inference_mode()
    def _sample(self, rows: range) -> dict[str, Tensor]:
        generator, recording = self.generator, self.recording
        row_seeds = seeds(recording.seed, rows, first=FIRST_SEED)
        noise = noise_from_seeds(row_seeds, generator.spec.shape, device=generator.device)
        cond = class_labels(generator.spec.classes, rows, generator.device)
        label = row_labels(cond, len(rows)).cpu()
        settings: Any = {"steps": recording.steps, "cond": cond}
        if recording.chunks:
            circuit = Circuit(generator.denoiser)
            times = generator.grid(recording.steps, generator.denoiser).tolist()
            noise = noise.half().float()
            ring = ring_records(circuit, noise, times, recording.chunks, cond=cond)
            check_finite(generator, ring["x0"], partial(generator.path, noise, **settings))
            return ring if cond is None else {"label": label, **ring}
        indices = {*recording.state_points, recording.steps}
        path = partial(generator.path, noise, **settings)
        *states, x0 = [x.cpu() for i, x in enumerate(path()) if i in indices]
        check_finite(generator, x0, path)
        records = {"x0": x0, "label": label, "seed": torch.tensor(row_seeds)}
        return {**records, "states": torch.stack(states, 1)} if states else records
