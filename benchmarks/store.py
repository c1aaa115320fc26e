"""Our store of teacher data against a file per sample and against `torch.save`.

    python benchmarks/store.py [--threads 1] [--records 4096] [--rounds 7] [--rings STORE]

One process; the layouts take turns and medians are compared. Eager, f32; pages are cached.

- ours: `fewstep.store`; of pairs it stores image, label and seed, and draws the noise when they are
  read ("no noise": it does not). Every shard is flushed to the disk (fsync);
- per sample: an .npz per sample, of float16 tensors (states of circuits: int8 codes and float16
  scales), in one zstd frame of level 10; no fsync;
- torch: float32 tensors in one `torch.save`, mapped and indexed; no fsync.

`feed` is a training feed with no training beside it: ours reads ahead in two threads, the others
loop over shuffled batches. Last, recording of pairs is compared with sampling as many images.
"""

import argparse
import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import truediv
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
import zstandard
from torch import Tensor

import fewstep
from fewstep import InputError, SampleSpec, noise_from_seeds
from fewstep.backbones import UNetConfig
from fewstep.data import load
from fewstep.drawing import seeds
from fewstep.images import from_uint8
from fewstep.recording import FIRST_SEED, Recording, record
from fewstep.store import F16, U8, Codec, Int8, Raw, Reader, Writer
from fewstep.streams import PairStream

IMAGE = (3, 32, 32)
HALVES = {"noise": "x_T_f16", "x0": "x0_teacher_f16"}  # names in a file per sample
CODES = {
    "rin0": 1,
    "r_chunks": 2,
}  # quantised tensors, and their leading dimensions that have scales
CLOCK = {"T": np.array([1000], np.int16), "chunk_size": np.array([100], np.int16)}
FEED = 128  # rows of a training batch
HEAD = """\
| data | layout | bytes/sample | MB/s written | samples/s written | fsync | random records/s \
| ours / it | feed, batches of 128/s | ours / it |
|---|---|---|---|---|---|---|---|---|---|"""

Samples = dict[str, Tensor]
Read = Callable[[Tensor], Samples]
Times = dict[str, dict[str, list[float]]]  # by layout, by measure: one number a round


class Kind(NamedTuple):
    """One kind of data: its samples, how ours stores them, and the layouts to measure."""

    name: str
    samples: Samples
    schema: dict[str, Codec]
    batch: int
    layouts: "tuple[Layout, ...]"
    fed: "tuple[Layout, ...]" = ()

    @property
    def floats(self) -> Samples:
        """Tensors that a student needs, and that the other layouts store."""
        return {k: values for k, values in self.samples.items() if values.is_floating_point()}

    @property
    def count(self) -> int:
        return len(self.samples["x0"])

    @property
    def payload(self) -> int:
        """Bytes of a sample in float32."""
        return sum(values[0].numel() * 4 for values in self.floats.values())


@dataclass(frozen=True)
class Ours:
    name: str = "ours"
    synced: str = "each shard"
    noise: bool = True

    def write(self, folder: Path, kind: Kind) -> None:
        writer = Writer(folder, schema=kind.schema, count=kind.count, provenance={})
        for rows in writer.missing():
            part = slice(rows.start, rows.stop)
            writer.write(rows.start, {name: kind.samples[name][part] for name in kind.schema})
        writer.finish()

    def open(self, folder: Path) -> Read:
        reader = Reader(folder)

        def read(index: Tensor) -> Samples:
            records = reader[index]
            if self.noise and "seed" in records:
                records["noise"] = noise_from_seeds(records["seed"].tolist(), IMAGE)
            return records

        return read

    def feed(self, folder: Path, order: Tensor, batch: int) -> None:
        streams = {"pairs": PairStream(Reader(folder))}
        batches = fewstep.Batches(streams, SampleSpec(IMAGE, 10), batch=batch, seed=int(order[0]))
        for step in range(len(order) // batch):
            batches.step(step)


class Plain:
    synced = "no"

    def feed(self, folder: Path, order: Tensor, batch: int) -> None:
        loop(self.open(folder), order[: len(order) // batch * batch], batch)


class PerSample(Plain):
    name = "per sample"

    def write(self, folder: Path, kind: Kind) -> None:
        folder.mkdir()
        compressor = zstandard.ZstdCompressor(level=10)
        for row in range(kind.count):
            values = {name: tensor[row].numpy() for name, tensor in kind.floats.items()}
            arrays = {HALVES[name]: values[name].astype(np.float16) for name in HALVES}
            for name in list(values)[len(HALVES) :]:
                arrays[f"{name}_q"], arrays[f"{name}_scale_f16"] = quantise(values[name])
            buffer = io.BytesIO()
            np.savez(buffer, **arrays, **(CLOCK if "r_chunks" in values else {}))
            frame = compressor.compress(buffer.getvalue())
            (folder / f"sample_{row:08d}.zst").write_bytes(frame)

    def open(self, folder: Path) -> Read:
        decompressor = zstandard.ZstdDecompressor()

        def sample(row: int) -> Samples:
            raw = decompressor.decompress((folder / f"sample_{row:08d}.zst").read_bytes())
            arrays = np.load(io.BytesIO(raw))
            values = {name: arrays[key].astype(np.float32) for name, key in HALVES.items()}
            for name in CODES if "T" in arrays else ():
                scale = arrays[f"{name}_scale_f16"].astype(np.float32)[..., None, None]
                values[name] = arrays[f"{name}_q"].astype(np.float32) * scale
            return {name: torch.from_numpy(array) for name, array in values.items()}

        def read(index: Tensor) -> Samples:
            rows = [sample(row) for row in index.tolist()]
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

        return read


class Torch(Plain):
    name = "torch"

    def write(self, folder: Path, kind: Kind) -> None:
        folder.mkdir()
        torch.save(kind.floats, folder / "samples.pt")

    def open(self, folder: Path) -> Read:
        tensors = torch.load(folder / "samples.pt", weights_only=True, mmap=True)
        return lambda index: {name: values[index] for name, values in tensors.items()}


Layout = Ours | PerSample | Torch
LAYOUTS = (Ours(), PerSample(), Torch())
NO_NOISE = Ours("ours, no noise", noise=False)


def quantise(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of each channel: its 99.5th percentile of |x| becomes code 127."""
    bound = np.percentile(np.abs(values), 99.5, axis=(-2, -1), keepdims=True)
    scale = np.maximum(bound / 127, 1e-8, dtype=np.float32)
    codes = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
    return codes, scale[..., 0, 0].astype(np.float16)


def pairs(count: int) -> tuple[Kind, str]:
    """Pairs of seeded noise and CIFAR-10 images, or noise instead of images; and their source."""
    try:
        images, source = load("cifar10").images[:count], "CIFAR-10 images"
    except InputError as error:
        images = torch.randint(0, 256, (count, *IMAGE), dtype=torch.uint8)
        source = f"uniform noise for images ({error})"
    row_seeds = seeds(0, range(len(images)), first=FIRST_SEED)
    samples = {"noise": noise_from_seeds(row_seeds, IMAGE), "x0": from_uint8(images)}
    samples |= {"label": torch.arange(len(images)) % 10, "seed": torch.tensor(row_seeds)}
    schema = {"x0": U8(IMAGE), "label": Raw(torch.int64), "seed": Raw(torch.int64)}
    return Kind("pairs", samples, schema, 256, (*LAYOUTS, NO_NOISE), fed=LAYOUTS), source


def synthetic_rings(count: int) -> Kind:
    """The teacher data of "Denoising Circuits": normal numbers, channels of different scale."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"noise": IMAGE, "x0": IMAGE, "rin0": (128, 32, 32), "r_chunks": (10, 128, 32, 32)}
    samples: Samples = {}
    for name, shape in shapes.items():
        scale = torch.empty(*shape[:-2], 1, 1).uniform_(0.5, 2, generator=generator)
        samples[name] = torch.randn(count, *shape, generator=generator) * scale
    schema: dict[str, Codec] = {"noise": F16(IMAGE), "x0": F16(IMAGE)}
    for name, channels in CODES.items():
        schema[name] = Int8(shapes[name], channels=channels, percentile=99.5)
    return Kind("rings", samples, schema, 4, LAYOUTS)


def rings(folder: str, count: int) -> Kind:
    """The first rings of a store of `record --chunks`."""
    reader = Reader(folder)
    records = reader[torch.arange(min(count, len(reader)))]
    samples = {name: records[name] for name in (*HALVES, *CODES)}
    schema = {name: reader.schema[name] for name in samples}
    return Kind("rings", samples, schema, 64, LAYOUTS)


def loop(read: Read, order: Tensor, batch: int) -> None:
    for index in order.split(batch):
        read(index)


def seconds(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def turn(layout: Layout, kind: Kind, order: Tensor, folder: Path) -> dict[str, float]:
    """Bytes per sample and rates of one layout, in a new folder that is then removed."""
    os.sync()  # or its fsync would also wait for another layout's data
    measures = {"write": kind.count / seconds(lambda: layout.write(folder, kind))}
    measures["bytes"] = sum(file.stat().st_size for file in folder.iterdir()) / kind.count
    read = layout.open(folder)
    loop(read, order, kind.batch)  # from here on the files are cached, the pages mapped
    measures["read"] = kind.count / seconds(lambda: loop(read, order, kind.batch))
    if layout in kind.fed:
        batch = min(FEED, kind.count)
        measures["feed"] = kind.count // batch / seconds(lambda: layout.feed(folder, order, batch))
    shutil.rmtree(folder)
    return measures


def check(kind: Kind, folder: Path) -> None:
    """Check that all layouts return the same tensors, up to rounding to half precision or codes."""
    index = torch.arange(0, kind.count, max(1, kind.count // 8))
    for layout in LAYOUTS:
        layout.write(folder, kind)
        samples = layout.open(folder)(index)
        for name, values in kind.floats.items():
            error = (samples[name] - values[index]).norm() / values[index].norm()
            if samples[name].dtype != torch.float32 or error > 0.05:
                raise SystemExit(f"{layout.name} does not return the {name} that was written")
        shutil.rmtree(folder)


def compare(kind: Kind, rounds: int, root: Path) -> Times:
    """Measures of each layout in every round."""
    check(kind, root / "checked")
    times: Times = {layout.name: {} for layout in kind.layouts}
    for number in range(rounds):
        order = torch.randperm(kind.count, generator=torch.Generator().manual_seed(number))
        for layout in kind.layouts[:: 1 if number % 2 else -1]:
            for key, value in turn(layout, kind, order, root / "turn").items():
                times[layout.name].setdefault(key, []).append(value)
    return times


def ratio(times: Times, key: str, other: str, one: str = "ours") -> float:
    """Median over rounds of one layout's measure over another's."""
    return median(map(truediv, times[one][key], times[other][key]))


def teacher() -> fewstep.Generator:
    torch.manual_seed(0)
    spec = SampleSpec((1, 16, 16), 10)
    config = UNetConfig(channels=(32, 64), layers=1, attention=(), groups=8)
    network = config.build(shape=spec.shape, classes=spec.classes)
    denoiser = fewstep.Denoiser(network, fewstep.Flow(), fewstep.Velocity())
    return fewstep.Generator(denoiser, spec, step=fewstep.Heun()).eval()


def recording(rounds: int, count: int, root: Path) -> tuple[float, float, float]:
    """Images a second of sampling alone and of recording, and the median ratio of their times."""
    generator, folder = teacher(), root / "recorded"

    def record_all() -> list[int]:
        settings = Recording(count, 8, shard=128)
        return [at.done for at in record(generator, folder, settings, teacher="random weights")]

    tile = record_all()[1]  # rows computed at once

    @torch.inference_mode()
    def bare() -> None:
        for rows in torch.arange(count).split(tile):
            noise = torch.randn(len(rows), *generator.spec.shape)
            generator(noise, steps=8, cond=fewstep.Condition(rows % 10))

    times: dict[Callable[[], object], list[float]] = {bare: [], record_all: []}
    for number in range(rounds):
        for do in (bare, record_all)[:: 1 if number % 2 else -1]:
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()
            times[do].append(seconds(do))
    each = [count / median(times[do]) for do in (bare, record_all)]
    return *each, median(map(truediv, times[bare], times[record_all]))


def show(kind: Kind, times: Times) -> None:
    """Print the rows of one kind: medians, and how many times faster ours is."""
    for layout in kind.layouts:
        mine = {key: median(values) for key, values in times[layout.name].items()}
        line = f"| {kind.name} | {layout.name} | {mine['bytes']:,.0f} "
        line += f"| {mine['write'] * kind.payload / 1e6:,.0f} | {mine['write']:,.0f} "
        line += f"| {layout.synced} | {mine['read']:,.0f} "
        line += f"| {ratio(times, 'read', layout.name):.2f} |"
        if layout in kind.fed:
            line += f" {mine['feed']:,.1f} | {ratio(times, 'feed', layout.name):.2f} |"
        print(line if layout in kind.fed else f"{line} | |", flush=True)


def goals(small: Times, large: Times, share: float) -> None:
    """Print each goal and its measured value."""
    size, smaller = median(small["ours"]["bytes"]), ratio(large, "bytes", "per sample")
    reads, alone = (ratio(small, "read", "per sample", one) for one in ("ours", NO_NOISE.name))
    rows = [("pairs: at most 3,300 bytes", f"{size:,.0f}", size <= 3300)]
    rows += [("pairs: reads at least 10 x per sample", f"{reads:.2f}", reads >= 10)]
    rows += [("the same, if ours draws no noise", f"{alone:.2f}", alone >= 10)]
    rows += [("states: at most 1 x the bytes per sample", f"{smaller:.4f}", smaller <= 1)]
    rows += [("recording: at least 0.90 x the bare speed", f"{share:.3f}", share >= 0.9)]
    print("\n| goal | measured | |\n|---|---|---|")
    for text, value, met in rows:
        print(f"| {text} | {value} | {'met' if met else 'missed'} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--records", type=int, default=4096, help="pairs")
    parser.add_argument("--states", type=int, default=24, help="records of states")
    parser.add_argument("--rings", metavar="STORE", help="real rings, measured too")
    parser.add_argument("--images", type=int, default=512, help="to record; tiles of 128")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    (small_kind, source), large_kind = pairs(options.records), synthetic_rings(options.states)
    print(f"`python {' '.join(sys.argv)}`: {options.threads} threads, torch {torch.__version__},")
    print(f"eager, f32, {options.rounds} rounds. {small_kind.count} pairs of {source}, in f32")
    print(f"{small_kind.payload:,} bytes each; {large_kind.count} rings, {large_kind.payload:,}.\n")
    print(HEAD)
    with TemporaryDirectory() as root:
        show(small_kind, small := compare(small_kind, options.rounds, Path(root)))
        show(large_kind, large := compare(large_kind, options.rounds, Path(root)))
        if options.rings:
            real = rings(options.rings, options.records)
            show(real, compare(real, options.rounds, Path(root)))
        bare, recorded, share = recording(options.rounds, options.images, Path(root))
    print(
        f"\nImages a second, {options.images} of them: sampled {bare:.1f}, recorded {recorded:.1f}."
    )
    goals(small, large, share)


if __name__ == "__main__":
    main()
