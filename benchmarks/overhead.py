"""What samplers add to the network's forward passes, in samples of 1,000 steps.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py runs/digits-flow [--batch 64] [--rounds 50]

Eager, f32, CPU, one thread. All samplers advance together: a round is 20 steps of each, and 20 bare
forward passes of the same network at the same shapes before and after them. A figure is the median
over the rounds of (CPU time of the steps) / (CPU time of as many bare passes as they call).
"""

import argparse
import statistics
import time
from itertools import islice

import torch

import fewstep
from fewstep import plugins
from fewstep.drawing import conditions
from fewstep.noise import noise_from_seeds
from fewstep.sampling import path
from fewstep.times import UniformGrid

ROUND = 20
TARGET = 1.05


def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


class Bare:
    """Forward passes of the network alone."""

    def __init__(self, generator, noise, cond):
        self.model, self.cond = generator.denoiser, cond
        scale, self.level = self.model.network_inputs(0.5, noise)
        self.x = scale * noise

    def __call__(self):
        for _ in range(ROUND):
            self.model.backbone(self.x, self.level, cond=self.cond)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=50, help="rounds of 20 steps to time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    generator, rows = fewstep.load(options.address), range(options.batch)
    noise = noise_from_seeds(rows, generator.spec.shape)
    cond, model = conditions(generator.spec, rows), generator.denoiser
    bare, times = Bare(generator, noise, cond), UniformGrid()(options.steps, generator.denoiser)
    steps = {n: plugins.resolve("sampler", n)() for n in plugins.names("sampler") if n != "ring"}
    samples = {n: path(model, noise, times, step=step, cond=cond) for n, step in steps.items()}
    for states in samples.values():
        next(states)
    bare()
    ratios, passes = {name: [] for name in steps}, []
    for _ in range(min(options.rounds, (options.steps - 1) // ROUND)):
        before = seconds(bare)
        spent = {
            name: seconds(lambda states=states: [*islice(states, ROUND)])
            for name, states in samples.items()
        }
        bare_time = (before + seconds(bare)) / 2
        passes.append(bare_time / ROUND)
        for name, value in spent.items():
            ratios[name].append(value / bare_time / steps[name].evaluations)
    network = statistics.median(passes) * 1e3
    print(
        f"torch {torch.__version__}, batch {options.batch}, {len(passes)} rounds of {ROUND} of the "
        f"{options.steps} steps"
    )
    print(f"a bare forward pass: {network:.2f} ms; predicted: at most {TARGET} at batch 64")
    print("| sampler | time / bare forward passes | added, ms a step |\n|---|---|---|")
    for name, values in sorted(ratios.items()):
        ratio = statistics.median(values)
        print(f"| {name} | {ratio:.3f} | {(ratio - 1) * steps[name].evaluations * network:.3f} |")


if __name__ == "__main__":
    main()
