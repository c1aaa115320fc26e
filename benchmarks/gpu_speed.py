"""Training of `cifar10-gpu-flow` beside diffusers' network of the same layers, on a GPU if any.

    python benchmarks/gpu_speed.py [--rounds 30] [key=value ...]

One process; the contenders take turns, step by step, and medians are compared. diffusers' network
is trained in a plain loop: in float32 as PyTorch has it, with bfloat16 (autocast) and channels
last, and compiled too; it has no classes, and AdamW. Ours is the preset, eager and compiled.
Overrides of the batch and of the network's sizes change all of them.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from train_step import plain

from fewstep import recipe
from fewstep.assembly import assemble
from fewstep.distributed import device

SHAPE = (3, 32, 32)


def ours(settings, compile):
    config = recipe.read("cifar10-gpu-flow", [*settings, f"fit.compile={str(compile).lower()}"])
    return next(assemble(config, device()).trainings(config.fit)).advance


def seconds(step):
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    config = recipe.read("cifar10-gpu-flow", options.settings)
    theirs = partial(
        plain, SHAPE, config.student.backbone, config.fit.batch, fused=True, place=device()
    )
    steps = {
        "diffusers, f32": theirs(),
        "diffusers, bf16, channels last": theirs(bf16=True),
        "diffusers, bf16, channels last, compiled": theirs(bf16=True, compile=True),
        "ours, eager": ours(options.settings, compile=False),
        "ours": ours(options.settings, compile=True),
    }
    for step in steps.values():
        seconds(step), seconds(step)
    times = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step))
    medians = {name: statistics.median(each) for name, each in times.items()}
    print(f"{device()}, batch {config.fit.batch}, {options.rounds} rounds")
    for name, median in medians.items():
        rate, ratio = config.fit.batch / median, median / medians["ours"]
        print(f"{name:42} {rate:9.1f} images a second; ours is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
