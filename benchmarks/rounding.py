"""How much a row's output depends on the rest of its batch, and the time to draw its noise.

    OMP_NUM_THREADS=1 python benchmarks/rounding.py

One process, eager, f32; the network is that of `fashion-flow` with random weights, none of them
zero, called once. Timings are medians of alternating rounds.
"""

import time
from statistics import median

import numpy as np
import torch

from fewstep import Condition, Denoiser, Flow, Velocity, noise_from_seeds
from fewstep.backbones import UNetConfig

ROWS, IMAGE = 64, (3, 32, 32)


def outputs(batch):
    """x0 of the same 64 rows, `batch` of them at a time."""
    torch.manual_seed(0)
    config = UNetConfig(channels=(32, 64), layers=1, attention=(), groups=8)
    network = config.build(shape=(1, 16, 16), classes=10).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    model, label = Denoiser(network, Flow(), Velocity()), torch.arange(ROWS) % 10
    noise = noise_from_seeds(range(ROWS), (1, 16, 16))
    with torch.inference_mode():
        parts = zip(noise.split(batch), label.split(batch), strict=True)
        return torch.cat([model(x, 0.7, cond=Condition(y)).x0 for x, y in parts])


def new_philox(seed):
    bits = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
    np.random.Generator(bits).standard_normal(IMAGE, dtype=np.float32)


def torch_generator(seed, generator=torch.Generator()):  # noqa: B008
    torch.randn(IMAGE, generator=generator.manual_seed(seed))


def main():
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; {ROWS} rows of 256 values"
    )
    print("| rows at once | values that differ from 64 at once | by at most |\n|---|---|---|")
    reference = outputs(ROWS)
    for batch in (1, 2, 7, 16, 32):
        error = (outputs(batch) - reference).abs()
        print(
            f"| {batch} | {int(error.gt(0).sum()):,} of {reference.numel():,} | {error.max():.1e} |"
        )
    methods = {
        "ours, one Philox with a new key for each row": lambda: noise_from_seeds(range(200), IMAGE),
        "a new Philox for each row": lambda: [new_philox(seed) for seed in range(200)],
        "torch's generator, seeded for each row": lambda: [
            torch_generator(seed) for seed in range(200)
        ],
    }
    times = {name: [] for name in methods}
    for _ in range(15):
        for name, draw in methods.items():
            start = time.perf_counter()
            draw()
            times[name].append((time.perf_counter() - start) / 200 * 1e6)
    print("\n| noise of a CIFAR image | µs |\n|---|---|")
    for name, each in times.items():
        print(f"| {name} | {median(each):.1f} |")


if __name__ == "__main__":
    main()
