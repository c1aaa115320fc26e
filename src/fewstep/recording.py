"""A generator into a store: noise, as a seed, and the image that a deterministic teacher makes.

Row i's noise comes from seed `FIRST_SEED + seed·2³² + i`, so a pair costs an image and two numbers.
These seeds are their own: a student is never measured on noise that it was trained on. The store
depends neither on batch sizes nor on interruptions or the number of processes.
"""

from collections.abc import Generator as Pull
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep import __version__, distributed, store, threads
from fewstep.circuit import Circuit
from fewstep.condition import NO_LABEL, Condition
from fewstep.drawing import class_labels, seeds
from fewstep.errors import InputError
from fewstep.generator import Generator, SampleSpec
from fewstep.sampling import DETERMINISTIC, describe_step, noise_from_seeds
from fewstep.store import Address

FIRST_SEED = 1 << 62
SHARD_BYTES = 256 << 20  # a shard is held in memory, uncompressed, while it is made
CODECS = ("u8", "f16", "int8", "raw")
PERCENTILE = 99.5  # of a latent's channel, that int8 reaches; Denoising Circuits' own


class Recorded(NamedTuple):
    """How far this process has come with its share of the rows."""

    done: int
    total: int


@dataclass(frozen=True)
class Recording:
    """What is recorded of a generator, and how it lies on disk."""

    count: int
    """PairBatch."""
    steps: int
    """Of the generator's sampler."""
    states: int = 0
    """States of each path to keep beside its ends, evenly spread over the grid's steps."""
    codec: str | None = None
    """u8, f16, raw, int8 or int8:PERCENTILE for the images; unset: u8, raw for points, f16 beside
    latents. States are no images: with u8 they are kept as f16."""
    chunks: int = 0
    """Of a circuit sampled by `ring`: also its first latent, and what each of so many equal parts
    of the steps adds to it, in 8 bits. The noise is recorded too, rounded to f16 before it is
    used, so that the record can go where Denoising Circuits' files go."""
    seed: int = 0
    """Of the noise."""
    shard: int = 1024
    """Pairs of a shard; fewer where they are large. A killed process loses at most two shards: the
    one that it computes, and the one that is being written."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.steps < 1:
            raise InputError(
                f"cannot record {self.count} pairs of {self.steps} steps: at least 1 of each"
            )
        seeds(self.seed, range(0))
        if self.chunks < 0 or (self.chunks and self.steps % self.chunks):
            raise InputError(
                f"{self.chunks} chunks do not divide {self.steps} steps: each is a sum of as many"
            )
        if not 0 <= self.states < self.steps:
            raise InputError(
                f"{self.states} states of a path of {self.steps} steps: there are "
                f"{self.steps - 1} between its ends"
            )

    @property
    def kept(self) -> list[int]:
        """The grid's points whose states are kept."""
        return [round(k * self.steps / (self.states + 1)) for k in range(1, self.states + 1)]

    def schema(self, spec: SampleSpec, latent: tuple[int, ...] = ()) -> Mapping[str, store.Codec]:
        """The tensors of a record of samples of this subject, and of a latent of that shape."""
        shape = spec.shape
        # images lose nothing that their pixels could show; points are not pixels
        name = self.codec or ("f16" if self.chunks else "u8" if len(shape) == 3 else "raw")
        image, number = _codec(name, shape, channels=1), store.Raw(torch.int64)
        if self.chunks:
            sums = (self.chunks, *latent)
            labels = {"label": number} if spec.classes else {}  # the published files know none
            return labels | {
                "noise": store.F16(shape),
                "x0": image,
                "rin0": store.Int8(latent, channels=1, percentile=PERCENTILE),
                "r_chunks": store.Int8(sums, channels=2, percentile=PERCENTILE),
            }
        told = {"x0": image, "label": number, "seed": number}
        if self.states:
            path = "f16" if name == "u8" else name
            told["states"] = _codec(path, (self.states, *shape), channels=2)
        return told


def record(
    generator: Generator,
    folder: Address,
    told: Recording,
    *,
    teacher: str,
    batch: int | None = None,
) -> Pull[Recorded]:
    """Record pairs shard by shard, yielding first what is there, then after each batch.

    Classes are recorded in turn. `teacher` is the hash of the weights, kept as provenance. Under
    `torchrun` each process records its own shards, and the first one seals the store. `batch` is
    the most rows between two yields, by default a tile's; neither the store nor the speed depends
    on it.

    Raises: InputError for a stochastic sampler, or a folder of other data.
    """
    _must_be_a_function(generator, told)
    if batch is not None and batch < 1:
        raise InputError(f"cannot record in batches of {batch}")
    rank, ranks = distributed.world(patience=timedelta(days=1))  # for the others' last shards
    tiles = Tiles(generator, told)
    writer = _writer(generator, folder, told, teacher, tile=tiles.size)
    size = writer.plan.shard_size
    mine = sum(len(writer.plan.records(k)) for k in range(rank, writer.plan.shards, ranks))
    missing = [rows for rows in writer.missing() if rows.start // size % ranks == rank]
    done = mine - sum(map(len, missing))
    yield Recorded(done, mine)
    with closing(_written(writer, missing, tiles, batch)) as made:
        for rows in made:
            done += len(rows)
            yield Recorded(done, mine)
    distributed.wait()
    tally = distributed.sum_numbers(writer.tally().to(generator.device))
    if rank == 0:
        writer.finish(tally.cpu())
    distributed.wait()


def _must_be_a_function(generator: Generator, told: Recording) -> None:
    name = describe_step(generator.step)["name"]
    if told.chunks and name != "ring":
        raise InputError(f"chunks are a ring's sums; {name} has none: record with --sampler ring")
    if told.states and name == "ring":
        raise InputError("a ring has no images on its way, which states are; it has --chunks")
    if name not in DETERMINISTIC:
        raise InputError(
            f"{name} draws fresh noise, so its images are no function of the starting noise and "
            f"cannot be regressed on; record with one of: {', '.join(DETERMINISTIC)}"
        )


def _written(
    writer: store.Writer, missing: list[range], tiles: "Tiles", batch: int | None
) -> Pull[range]:
    """Make and write each missing shard; yields the rows just made."""
    # encoding, compressing and the disk are hidden behind the next shard's computing
    with threads.workers(1) as pool:
        writing: Future[None] | None = None
        for rows in missing:
            parts: list[dict[str, Tensor]] = []
            for piece in tiles.pieces(rows, batch):
                parts.append(tiles.records(piece))
                yield piece
            whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            if writing:
                writing.result()
            writing = pool.submit(writer.write, rows.start, whole)
        if writing:
            writing.result()


def _writer(
    generator: Generator, folder: Address, told: Recording, teacher: str, *, tile: int
) -> store.Writer:
    times = generator.grid(told.steps, generator.denoiser).tolist()
    provenance = {
        "teacher": teacher,
        "sampler": describe_step(generator.step),
        "times": times,
        "guidance": generator.describe()["guidance"],
        "seed": told.seed,
        "version": __version__,
    }
    if told.states:
        provenance["states"] = [times[point] for point in told.kept]
    if told.chunks:
        provenance |= {"steps": told.steps, "chunks": told.chunks}
    rows = _shard_rows(generator, told)
    return store.Writer(
        folder,
        schema=told.schema(generator.spec, _latent(generator, told)),
        count=told.count,
        # whole tiles, where it holds one: nothing is computed for two shards, maybe of two ranks
        shard_size=rows // tile * tile or rows,
        provenance=provenance,
    )


def _latent(generator: Generator, told: Recording) -> tuple[int, ...]:
    return Circuit(generator.denoiser).shape if told.chunks else ()


def _shard_rows(generator: Generator, told: Recording) -> int:
    """Records of which a shard can hold at most so many."""
    row = 4 * torch.Size(generator.spec.shape).numel() * (1 + told.states)
    if told.chunks:
        row += 4 * torch.Size(_latent(generator, told)).numel() * (1 + told.chunks)
    return max(1, min(told.shard, SHARD_BYTES // row))


def _codec(name: str, shape: tuple[int, ...], *, channels: int) -> store.Codec:
    kind, _, percentile = name.partition(":")
    if kind == "int8":
        try:
            share = float(percentile or 100)
        except ValueError:
            raise InputError(f"codec {name!r}: write int8, or int8:99.5 to clip") from None
        return store.Int8(shape, channels=min(channels, len(shape)), percentile=share)
    if name == "raw":
        return store.Raw(torch.float32, shape)
    if name not in CODECS:
        raise InputError(f"there is no codec {name!r}; there are: {', '.join(CODECS)}")
    return store.U8(shape) if name == "u8" else store.F16(shape)


class Tiles:
    """A generator's records, computed tile by tile.

    Kernels round differently for other batch sizes, so that a pixel here and there would change
    with them. The network therefore always sees the same whole tile: rows k·T … (k + 1)·T − 1.
    """

    def __init__(self, generator: Generator, told: Recording) -> None:
        self.generator = generator
        self.told = told
        roomy = generator.device.type != "cpu"
        rows = (2**20 if roomy else 2**17) // torch.Size(generator.spec.shape).numel()
        if told.chunks:  # latents are many times larger than their images
            rows = min(rows, _shard_rows(generator, told))
        self.size: int = max(1, min(512 if roomy else 128, 2 ** (max(rows, 1).bit_length() - 1)))
        self._last: tuple[int, dict[str, Tensor]] = (-1, {})

    def records(self, rows: range) -> dict[str, Tensor]:
        """The records of rows that lie in one tile."""
        tile = rows.start // self.size
        if self._last[0] != tile:
            self._last = (tile, self._computed(range(tile * self.size, (tile + 1) * self.size)))
        first = tile * self.size
        return {key: x[rows.start - first : rows.stop - first] for key, x in self._last[1].items()}

    def pieces(self, rows: range, batch: int | None) -> Iterator[range]:
        """`rows`, cut where tiles end and into at most `batch` rows."""
        first = rows.start
        while first < rows.stop:
            stop = min(
                rows.stop, (first // self.size + 1) * self.size, first + (batch or self.size)
            )
            yield range(first, stop)
            first = stop

    @torch.inference_mode()
    def _computed(self, rows: range) -> dict[str, Tensor]:
        generator, told = self.generator, self.told
        keys = seeds(told.seed, rows, first=FIRST_SEED)
        noise = noise_from_seeds(keys, generator.spec.shape, device=generator.device)
        cond = class_labels(generator.spec.classes, rows, generator.device)
        label = torch.full((len(rows),), NO_LABEL) if cond is None else cond.label
        if told.chunks:
            rung = self._rung(noise.half().float(), cond)
            return rung if cond is None else {"label": label.cpu(), **rung}
        kept = {*told.kept, told.steps}
        path = enumerate(generator.path(noise, steps=told.steps, cond=cond))
        *states, x0 = [x.cpu() for point, x in path if point in kept]
        records = {"x0": x0, "label": label.cpu(), "seed": torch.tensor(keys)}
        return {**records, "states": torch.stack(states, 1)} if states else records

    def _rung(self, noise: Tensor, cond: Condition | None) -> dict[str, Tensor]:
        """A ring's ends, and the K partial sums between them: they add up but for rounding."""
        generator, told = self.generator, self.told
        circuit, end = Circuit(generator.denoiser), generator.denoiser.span[0]
        times = [*generator.grid(told.steps, generator.denoiser).tolist(), end]
        ring, every = circuit.ring(noise, times, cond=cond), told.steps // told.chunks
        kept = [z.cpu() for point, z in enumerate(ring) if point % every == 0]
        x0 = circuit.image(kept[-1].to(noise), end)
        chunks = torch.stack([b - a for a, b in zip(kept, kept[1:], strict=False)], dim=1)
        return {"noise": noise.cpu(), "x0": x0.cpu(), "rin0": kept[0], "r_chunks": chunks}
