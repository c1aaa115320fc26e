"""Our store of teacher data against a file per sample and against `torch.save`.

    python benchmarks/store.py [--threads 1] [--records 4096] [--rounds 7] [--rings STORE]

One process; the layouts take turns and medians are compared. Eager, f32; pages are cached.

- ours: `fewstep.store`; of pairs it keeps image, label and seed, and makes the noise when they are
  read ("no noise": it does not). Every shard is forced to the disk (fsync);
- per sample: an .npz a sample, of float16 tensors (latents: int8 codes, float16 scales), in one
  zstd frame of level 10; no fsync;
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
from fewstep.backbones import UNetConfig, build
from fewstep.data import load
from fewstep.drawing import seeds
from fewstep.images import from_uint8
from fewstep.recording import FIRST_SEED, Recording, record
from fewstep.store import F16, U8, Codec, Int8, Raw, Reader, Writer
from fewstep.streams import PairStream

IMAGE = (3, 32, 32)
HALVES = {"noise": "x_T_f16", "x0": "x0_teacher_f16"}  # names in a file per sample
CODES = {"rin0": 1, "r_chunks": 2}  # what is quantised, and its leading sizes that have scales
CLOCK = {"T": np.array([1000], np.int16), "chunk_size": np.array([100], np.int16)}
FEED = 128  # rows of a training batch
HEAD = """\
| data | layout | bytes/sample | MB/s written | samples/s written | fsync | random records/s \
| ours / it | feed, batches of 128/s | ours / it |
|---|---|---|---|---|---|---|---|---|---|"""

Samples = dict[str, Tensor]
Read = Callable[[Tensor], Samples]
Told = dict[str, dict[str, list[float]]]  # by layout, by measure: one number a round


class Kind(NamedTuple):
    """One kind of data: all its samples, how ours stores them, and what is measured."""

    name: str
    samples: Samples
    schema: dict[str, Codec]
    batch: int
    layouts: "tuple[Layout, ...]"
    fed: "tuple[Layout, ...]" = ()

    @property
    def floats(self) -> Samples:
        """What a student needs, and all that the other layouts keep."""
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
            kept = reader[index]
            if self.noise and "seed" in kept:
                kept["noise"] = noise_from_seeds(kept["seed"].tolist(), IMAGE)
            return kept

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
                arrays[f"{name}_q"], arrays[f"{name}_scale_f16"] = quantised(values[name])
            buffer = io.BytesIO()
            np.savez(buffer, **arrays, **(CLOCK if "r_chunks" in values else {}))
            whole = compressor.compress(buffer.getvalue())
            (folder / f"sample_{row:08d}.zst").write_bytes(whole)

    def open(self, folder: Path) -> Read:
        decompressor = zstandard.ZstdDecompressor()

        def sample(row: int) -> Samples:
            raw = decompressor.decompress((folder / f"sample_{row:08d}.zst").read_bytes())
            arrays = np.load(io.BytesIO(raw))
            values = {name: arrays[there].astype(np.float32) for name, there in HALVES.items()}
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


def quantised(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of each channel: its 99.5th percentile of |x| becomes code 127."""
    bound = np.percentile(np.abs(values), 99.5, axis=(-2, -1), keepdims=True)
    scale = np.maximum(bound / 127, 1e-8, dtype=np.float32)
    codes = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
    return codes, scale[..., 0, 0].astype(np.float16)


def pairs(count: int) -> tuple[Kind, str]:
    """Pairs of seeded noise and CIFAR-10 images, or what stands in for them; and which it is."""
    try:
        images, told = load("cifar10").images[:count], "CIFAR-10 images"
    except InputError as error:
        images = torch.randint(0, 256, (count, *IMAGE), dtype=torch.uint8)
        told = f"uniform noise for images ({error})"
    keys = seeds(0, range(len(images)), first=FIRST_SEED)
    samples = {"noise": noise_from_seeds(keys, IMAGE), "x0": from_uint8(images)}
    samples |= {"label": torch.arange(len(images)) % 10, "seed": torch.tensor(keys)}
    schema = {"x0": U8(IMAGE), "label": Raw(torch.int64), "seed": Raw(torch.int64)}
    return Kind("pairs", samples, schema, 256, (*LAYOUTS, NO_NOISE), fed=LAYOUTS), told


def synthetic_rings(count: int) -> Kind:
    """The teacher data of "Denoising Circuits": normal numbers, channels of different scale."""
    drawn = torch.Generator().manual_seed(0)
    shapes = {"noise": IMAGE, "x0": IMAGE, "rin0": (128, 32, 32), "r_chunks": (10, 128, 32, 32)}
    samples: Samples = {}
    for name, shape in shapes.items():
        scale = torch.empty(*shape[:-2], 1, 1).uniform_(0.5, 2, generator=drawn)
        samples[name] = torch.randn(count, *shape, generator=drawn) * scale
    schema: dict[str, Codec] = {"noise": F16(IMAGE), "x0": F16(IMAGE)}
    for name, channels in CODES.items():
        schema[name] = Int8(shapes[name], channels=channels, percentile=99.5)
    return Kind("rings", samples, schema, 4, LAYOUTS)


def rings(folder: str, count: int) -> Kind:
    """Real latents: the first rings of a store of `record --chunks`."""
    reader = Reader(folder)
    kept = reader[torch.arange(min(count, len(reader)))]
    samples = {name: kept[name] for name in (*HALVES, *CODES)}
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
    """One layout's bytes a sample and its rates, from a fresh folder that is then removed."""
    os.sync()  # lest its fsync wait for what another layout has left to the system
    told = {"write": kind.count / seconds(lambda: layout.write(folder, kind))}
    told["bytes"] = sum(file.stat().st_size for file in folder.iterdir()) / kind.count
    read = layout.open(folder)
    loop(read, order, kind.batch)  # from here on the files are cached, the pages mapped
    told["read"] = kind.count / seconds(lambda: loop(read, order, kind.batch))
    if layout in kind.fed:
        batch = min(FEED, kind.count)
        told["feed"] = kind.count // batch / seconds(lambda: layout.feed(folder, order, batch))
    shutil.rmtree(folder)
    return told


def check(kind: Kind, folder: Path) -> None:
    """All layouts return the same tensors, but for what half precision and codes round off."""
    index = torch.arange(0, kind.count, max(1, kind.count // 8))
    for layout in LAYOUTS:
        layout.write(folder, kind)
        found = layout.open(folder)(index)
        for name, values in kind.floats.items():
            error = (found[name] - values[index]).norm() / values[index].norm()
            if found[name].dtype != torch.float32 or error > 0.05:
                raise SystemExit(f"{layout.name} does not return the {name} that it was given")
        shutil.rmtree(folder)


def compare(kind: Kind, rounds: int, root: Path) -> Told:
    """What each layout measures in every round, by its name."""
    check(kind, root / "checked")
    told: Told = {layout.name: {} for layout in kind.layouts}
    for number in range(rounds):
        order = torch.randperm(kind.count, generator=torch.Generator().manual_seed(number))
        for layout in kind.layouts[:: 1 if number % 2 else -1]:
            for key, value in turn(layout, kind, order, root / "turn").items():
                told[layout.name].setdefault(key, []).append(value)
    return told


def ratio(told: Told, key: str, other: str, one: str = "ours") -> float:
    """One layout's over another's: the median of what the rounds say."""
    return median(map(truediv, told[one][key], told[other][key]))


def teacher() -> fewstep.Generator:
    torch.manual_seed(0)
    spec = SampleSpec((1, 16, 16), 10)
    config = UNetConfig(channels=(32, 64), layers=1, attention=(), groups=8)
    network = build(config, shape=spec.shape, classes=spec.classes)
    denoiser = fewstep.Denoiser(network, fewstep.Flow(), fewstep.Velocity())
    return fewstep.Generator(denoiser, spec, step=fewstep.heun).eval()


def recording(rounds: int, count: int, root: Path) -> tuple[float, float, float]:
    """Images a second of sampling alone and of recording, and the median ratio of their times."""
    generator, folder = teacher(), root / "recorded"

    def recorded() -> list[int]:
        told = Recording(count, 8, shard=128)
        return [at.done for at in record(generator, folder, told, teacher="random weights")]

    tile = recorded()[1]  # so many rows at once, first from 0

    @torch.inference_mode()
    def bare() -> None:
        for rows in torch.arange(count).split(tile):
            noise = torch.randn(len(rows), *generator.spec.shape)
            generator(noise, steps=8, cond=fewstep.Condition(rows % 10))

    times: dict[Callable[[], object], list[float]] = {bare: [], recorded: []}
    for number in range(rounds):
        for do in (bare, recorded)[:: 1 if number % 2 else -1]:
            shutil.rmtree(folder, ignore_errors=True)
            os.sync()
            times[do].append(seconds(do))
    each = [count / median(times[do]) for do in (bare, recorded)]
    return *each, median(map(truediv, times[bare], times[recorded]))


def show(kind: Kind, told: Told) -> None:
    """The rows of one kind: medians, and how many times faster ours is."""
    for layout in kind.layouts:
        mine = {key: median(values) for key, values in told[layout.name].items()}
        line = f"| {kind.name} | {layout.name} | {mine['bytes']:,.0f} "
        line += f"| {mine['write'] * kind.payload / 1e6:,.0f} | {mine['write']:,.0f} "
        line += f"| {layout.synced} | {mine['read']:,.0f} "
        line += f"| {ratio(told, 'read', layout.name):.2f} |"
        if layout in kind.fed:
            line += f" {mine['feed']:,.1f} | {ratio(told, 'feed', layout.name):.2f} |"
        print(line if layout in kind.fed else f"{line} | |", flush=True)


def goals(small: Told, large: Told, share: float) -> None:
    """Each goal beside what was measured."""
    size, smaller = median(small["ours"]["bytes"]), ratio(large, "bytes", "per sample")
    reads, alone = (ratio(small, "read", "per sample", one) for one in ("ours", NO_NOISE.name))
    rows = [("pairs: at most 3,300 bytes", f"{size:,.0f}", size <= 3300)]
    rows += [("pairs: reads at least 10 x per sample", f"{reads:.2f}", reads >= 10)]
    rows += [("the same, if ours makes no noise", f"{alone:.2f}", alone >= 10)]
    rows += [("latents: at most 1 x the bytes per sample", f"{smaller:.4f}", smaller <= 1)]
    rows += [("recording: at least 0.90 x the bare speed", f"{share:.3f}", share >= 0.9)]
    print("\n| goal | measured | |\n|---|---|---|")
    for text, value, met in rows:
        print(f"| {text} | {value} | {'met' if met else 'missed'} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--records", type=int, default=4096, help="pairs")
    parser.add_argument("--latents", type=int, default=24, help="records of latents")
    parser.add_argument("--rings", metavar="STORE", help="of real latents: measured too")
    parser.add_argument("--images", type=int, default=512, help="to record; tiles of 128")
    parser.add_argument("--rounds", type=int, default=7)
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    (paired, source), wide = pairs(told.records), synthetic_rings(told.latents)
    print(f"`python {' '.join(sys.argv)}`: {told.threads} threads, torch {torch.__version__},")
    print(f"eager, f32, {told.rounds} rounds. {paired.count} pairs of {source}, in f32")
    print(f"{paired.payload:,} bytes each; {wide.count} latents, {wide.payload:,} bytes each.\n")
    print(HEAD)
    with TemporaryDirectory() as root:
        show(paired, small := compare(paired, told.rounds, Path(root)))
        show(wide, large := compare(wide, told.rounds, Path(root)))
        if told.rings:
            real = rings(told.rings, told.records)
            show(real, compare(real, told.rounds, Path(root)))
        bare, kept, share = recording(told.rounds, told.images, Path(root))
    print(f"\nImages a second, {told.images} of them: sampled {bare:.1f}, recorded {kept:.1f}.")
    goals(small, large, share)


if __name__ == "__main__":
    main()
