"""Training steps of networks with as many weights, on 32x32 images.

    OMP_NUM_THREADS=1 python benchmarks/backbones.py [--rounds 15] [--batch 16]

One process; a step is `Training.advance` of `denoise` with the defaults, in eager mode. The
networks take turns, step by step; the medians of the CPU time are printed.
"""

import argparse
import statistics
import time

import torch

from fewstep import Batches, Denoiser, FitConfig, Flow, ImageStream, SampleSpec
from fewstep.backbones import DiTConfig, UNetConfig
from fewstep.methods.base import Task
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.parametrization import Velocity
from fewstep.trainer import Training

SHAPE = (3, 32, 32)
NETWORKS = {
    "unet": UNetConfig(channels=(64, 120, 128), layers=1, attention=(8,), groups=8),
    "unet, patch 2": UNetConfig(channels=(96, 144), layers=1, attention=(8,), patch=2, groups=8),
    "dit, patch 2": DiTConfig(width=192, depth=6),
    "dit, patch 4": DiTConfig(width=192, depth=6, patch=4),
}


def training(config, batch):
    torch.manual_seed(0)
    student = Denoiser(config.build(shape=SHAPE), Flow(), Velocity())
    method = Denoise(DenoiseConfig(), Task(student, SampleSpec(SHAPE)))
    images = torch.randint(0, 256, (256, *SHAPE), dtype=torch.uint8)
    batches = Batches({"images": ImageStream(images, None)}, SampleSpec(SHAPE), batch=batch, seed=0)
    return Training(method, batches, FitConfig(steps=10**9, batch=batch, lr=1e-4))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    trainings = {name: training(config, options.batch) for name, config in NETWORKS.items()}
    times = {name: [] for name in trainings}
    for _ in range(options.rounds + 2):
        for name, each in trainings.items():
            start = time.process_time()
            each.advance()
            times[name].append(time.process_time() - start)
    print("network        weights  CPU seconds a step  steps/s")
    for name, config in NETWORKS.items():
        weights = sum(p.numel() for p in config.build(shape=SHAPE).parameters())
        median = statistics.median(times[name][2:])
        print(f"{name:13} {weights / 1e6:6.2f} M {median:19.3f} {1 / median:8.2f}")


if __name__ == "__main__":
    main()
