"""Does reading teacher data slow training down? The same steps, fed from a store and from memory.

    python benchmarks/feed.py PAIRS [--threads 2] [--steps 20] [--rounds 7]

One process, alternating, medians; eager, f32. PAIRS is a store of images, of one channel or three.
The network is that of `fashion-flow`, at batch 64; "no reading ahead" reads a batch when needed.
"""

import argparse
import time
from statistics import median

import torch

from fewstep import Denoiser, FitConfig, Flow, SampleSpec, Velocity, store
from fewstep.backbones import UNetConfig
from fewstep.batching import Batches
from fewstep.methods.base import Task
from fewstep.methods.regress import Regress, RegressConfig
from fewstep.streams import PairStream
from fewstep.trainer import Training


class Memory:
    """Pairs that are read before the timing starts."""

    def __init__(self, stream, count):
        rows = torch.arange(min(count, len(stream)))
        self.batch = stream.rows(rows, torch.zeros(len(rows)), torch.device("cpu"))

    def __len__(self):
        return len(self.batch.x0)

    def rows(self, index, coin, device):
        cond = self.batch.cond and type(self.batch.cond)(self.batch.cond.label[index])
        return type(self.batch)(self.batch.noise[index], self.batch.x0[index], cond)


class OneByOne(Batches):
    """Reads each batch when it is needed."""

    def step(self, step, micro_batch=0):
        return self._read(step, micro_batch, 0, 1)


def start_training(kind, stream, shape, classes):
    """A new training, ready for its next steps."""
    spec = SampleSpec(shape, classes)
    torch.manual_seed(0)
    config = UNetConfig(channels=(32, 64), layers=1, attention=(), groups=8)
    network = config.build(shape=shape, classes=classes)
    method = Regress(RegressConfig(), Task(Denoiser(network, Flow(), Velocity()), spec))
    return Training(method, kind({"pairs": stream}, spec, batch=64, seed=0), FitConfig(batch=64))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pairs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    stream = PairStream(store.Reader(options.pairs))
    labels = stream.reader[:1000].get("label", torch.tensor([-1]))
    feeds = {
        "memory": (Batches, Memory(stream, 8192)),
        "store": (Batches, stream),
        "store, no reading ahead": (OneByOne, stream),
    }
    classes = int(labels.max()) + 1
    runs = {name: start_training(*feed, stream.shape, classes) for name, feed in feeds.items()}
    times = {name: [] for name in feeds}
    for number in range(options.rounds + 1):
        for name, run in list(runs.items())[:: 1 if number % 2 else -1]:
            start = time.perf_counter()
            for _ in range(options.steps):
                run.advance()
            if number:  # the first round warms up
                times[name].append((time.perf_counter() - start) / options.steps)
    print(
        f"{options.threads} threads, batch 64 of {stream.shape}, medians of {options.rounds} rounds"
    )
    print("| fed from | ms a step | of memory's time |\n|---|---|---|")
    for name, each in times.items():
        share = median(a / b for a, b in zip(each, times["memory"], strict=True))
        print(f"| {name} | {1000 * median(each):.1f} | {share:.3f} |")


if __name__ == "__main__":
    main()
