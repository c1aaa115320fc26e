"""What a training step of each method costs, in steps of the plain network.

    python benchmarks/methods.py [--threads 2] [--rounds 7] [--batch 16] [--only ect] [--cpu]
    python benchmarks/methods.py --profile regress

The unit is the raw step: forward, backward and fused AdamW of one U-Net of 1.75 M parameters at
3x32x32, on tensors that lie ready. A method's step is `Training.advance`: all that a real run does,
with noise, losses, gradient norm and clipping, averaged weights and the finite check. One process;
all take turns, round by round; a ratio is the median over the rounds of that round's. Eager, f32.
`--cpu` counts the process's CPU time: for one thread on a machine that others are using.

The floor counts what a method cannot do without, in parts measured in the same rounds:

    F  forward, no gradient       J  forward with a forward-mode derivative, no gradient
    R  the raw step               I  forward and backward to the input alone
    B  forward and backward       H  the encoder alone, forward and backward

Steps that differ (a student every 5th, several counts) are averaged over a whole cycle. "updates"
are optimiser steps a step. Published are the multiples of a published framework, and our goals.
A method that is missing in CASES is run with its defaults and has no floor.
"""

import argparse
import statistics
import time
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from fewstep import (
    Batches,
    Denoiser,
    FitConfig,
    Flow,
    Generator,
    ImageStream,
    SampleSpec,
    Velocity,
    plugins,
)
from fewstep.backbones import UNetConfig
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.base import Task
from fewstep.methods.batch import PairBatch
from fewstep.trainer import Training

SHAPE = (3, 32, 32)
NETWORK = UNetConfig(channels=(40, 64, 64), attention=(8,), groups=8)


@dataclass(frozen=True)
class Case:
    """A method under some settings, and what its step needs at least: calls by part."""

    method: str
    floor: dict
    settings: dict
    cycle: int = 1
    published: float | None = None
    goal: float | None = None


def case(method, *, cycle=1, published=None, goal=None, settings=None, **floor):
    return Case(method, floor, settings or {}, cycle, published, goal)


# a derivative along the student's own pass costs what it adds to a plain forward: J − F
CASES = {
    "denoise": case("denoise", R=1),
    "regress": case("regress", R=1, published=1.0, goal=1.02),
    "kstep": case("kstep", R=1),
    "reflow": case("reflow", R=1),
    "ect": case("consistency", R=1, F=1, published=1.43, goal=1.30),
    "cd": case(
        "consistency", R=1, F=2, published=1.71, goal=1.55,
        settings={"source": "teacher", "solver": "euler"},
    ),
    "cd, heun": case(
        "consistency", R=1, F=3, settings={"source": "teacher", "solver": "heun"},
    ),
    "meanflow, a quarter": case("meanflow", R=1, J=0.25, F=-0.25),
    "meanflow, all rows": case(
        "meanflow", R=1, J=1, F=-1, published=2.10, goal=2.0, settings={"distinct": 1.0},
    ),
    "scm, teacher": case(
        "scm", R=1, J=1, F=0, published=2.49, goal=2.15, settings={"source": "teacher"},
    ),
    "scm, data": case("scm", R=1, J=1, F=-1, settings={"source": "data"}),
    "progressive": case("progressive", R=1, F=2),
    "sfd, 1 step": case("sfd", R=1, F=4, settings={"counts": (1,)}),
    "sfd, 1 2 4 steps": case("sfd", R=7 / 3, F=28 / 3, cycle=3),
    # the student's images of a student turn serve the fake's turn too
    "dmd": case("dmd", R=2, F=2, B=1, settings={"regression": 0.25}),
    "dmd2, no head": case("dmd", R=1 + 1 / 5, F=4 / 5 + 2 / 5, cycle=5, settings={"every": 5}),
    # the head's own cost is left out; it sees what the encoder says of real and fake images
    "dmd2": case(
        "dmd", R=1 + 1 / 5, F=4 / 5 + 2 / 5, H=2 + 1 / 5, cycle=5,
        settings={"every": 5, "adversarial": AdversarialConfig(weight=0.003)},
    ),
    "sid": case("sid", R=2, I=2),
}  # fmt: skip


OTHERS = {"circuit", "residual_sum"}
"""Methods of networks that are not this one: no multiple of its step."""


class Ready:
    """Pairs that lie in memory."""

    def __init__(self, rows=512):
        generator = torch.Generator().manual_seed(1)
        self.noise = torch.randn(rows, *SHAPE, generator=generator)

    def __len__(self):
        return len(self.noise)

    def rows(self, index, coin, device):
        return PairBatch(self.noise[index], self.noise[index].tanh(), None)


def network():
    """The U-Net, its zero layers filled: all there is to compute is computed on numbers."""
    torch.manual_seed(0)
    net = NETWORK.build(shape=SHAPE)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return net


def training(case, batch):
    """The step of a method in a training of its own."""
    kind, spec = plugins.resolve("method", case.method), SampleSpec(SHAPE)
    student = Denoiser(network(), Flow(), Velocity())
    teacher = Generator(deepcopy(student), spec)
    method = kind(kind.Config(**case.settings), Task(student, spec, teacher))
    pixels = torch.randint(0, 256, (512, *SHAPE), dtype=torch.uint8)
    streams = {"images": ImageStream(pixels, None), "pairs": Ready()}
    streams = {name: stream for name, stream in streams.items() if name in method.reads}
    batches = Batches(streams, spec, batch=batch, seed=0)
    fit = FitConfig(steps=10**9, batch=batch, lr=1e-5)
    return Training(method, batches, fit)


def parts(batch):
    """The step of each part of the floors."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    x, wanted, level = torch.randn(batch, *SHAPE), torch.randn(batch, *SHAPE), torch.rand(batch)
    level, along, asks = 1000 * level, torch.randn_like(x), x.clone().requires_grad_()
    still = network().requires_grad_(False)

    def backward():
        optimizer.zero_grad()
        loss = (net(x, level) - wanted).square().mean()
        loss.backward()
        return loss

    def raw():
        backward()
        optimizer.step()

    def slope():
        torch.func.jvp(still, (x, level), (along, torch.ones_like(level)))

    def to_input():
        torch.autograd.grad((still(asks, level) - wanted).square().mean(), asks)

    def forward():
        with torch.no_grad():
            net(x, level)

    def encoder():
        optimizer.zero_grad()
        net.features(x, level)[-1].square().mean().backward()

    steps = {"R": raw, "B": backward, "F": forward, "J": torch.no_grad()(slope)}
    return {**steps, "I": to_input, "H": encoder}


def measured(steps, cycles, rounds, clock):
    """Seconds a step of each, round by round; they take turns."""
    times = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in list(steps.items())[:: 1 if number % 2 else -1]:
            start = clock()
            for _ in range(cycles.get(name, 1)):
                step()
            if number:  # the first round warms up
                times[name].append((clock() - start) / cycles.get(name, 1))
    return times


def floor(case, share):
    return sum(calls * share[part] for part, calls in case.floor.items()) or None


def updates(run, cycle):
    return sum(len(list(run.method.turns(step))) for step in range(cycle)) / cycle


def number(value):
    return f"{value:9.2f}" if value else f"{'':>9}"


def select(only):
    missing = set(plugins.names("method")) - {each.method for each in CASES.values()} - OTHERS
    cases = {**CASES, **{name: case(name) for name in sorted(missing)}}
    return {name: cases[name] for name in only} if only else cases


def compare(options):
    cases = select(options.only)
    runs = {name: training(each, options.batch) for name, each in cases.items()}
    pieces = parts(options.batch)
    steps = {**pieces, **{name: run.advance for name, run in runs.items()}}
    cycles = {name: each.cycle for name, each in cases.items()}
    clock = time.process_time if options.cpu else time.perf_counter
    times = measured(steps, cycles, options.rounds, clock)
    ratios = {
        name: statistics.median(mine / raw for mine, raw in zip(each, times["R"], strict=True))
        for name, each in times.items()
    }
    print("part       ms  x raw")
    for name in pieces:
        print(f"{name:4} {1000 * statistics.median(times[name]):8.1f} {ratios[name]:6.2f}")
    print("\nmethod               updates     x raw     floor  over it published      goal")
    for name, each in cases.items():
        least = floor(each, ratios)
        over = ratios[name] / least if least else None
        shown = (ratios[name], least, over, each.published, each.goal)
        count = updates(runs[name], each.cycle)
        print(f"{name:20} {count:7.2f} {' '.join(number(value) for value in shown)}")


def operators(step):
    """Milliseconds of its own that each operator takes in a step, and how often it is called."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    return {e.key: (e.self_cpu_time_total / 1000, e.count) for e in seen.key_averages()}


def compare_operators(options):
    """Where a method's step spends more than the raw one; they take turns."""
    steps = (
        parts(options.batch)["R"],
        training(select([])[options.profile], options.batch).advance,
    )
    rounds = [[operators(step) for step in steps] for _ in range(options.rounds + 1)][1:]
    names = {name for pair in rounds for name in pair[1]}

    def middle(name, which):
        each = [pair[which].get(name, (0, 0)) for pair in rounds]
        return [statistics.median(values) for values in zip(*each, strict=True)]

    rows = {name: [*middle(name, 1), *middle(name, 0)] for name in names}
    mine, raw = (sum(row[i] for row in rows.values()) for i in (0, 2))
    print(f"raw {raw:.1f} ms, {options.profile} {mine:.1f} ms")
    print(f"{'operator':50}  ms more  calls  raw calls")
    for name, row in sorted(rows.items(), key=lambda item: item[1][2] - item[1][0])[:20]:
        print(f"{name[:50]:50} {row[0] - row[2]:8.2f} {row[1]:6.0f} {row[3]:10.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--cpu", action="store_true", help="CPU time in place of wall time")
    parser.add_argument("--only", nargs="+", default=[], help="cases of the table")
    parser.add_argument("--profile", help="one case: its operators against the raw step's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = sum(p.numel() for p in network().parameters()) / 1e6
    print(
        f"torch {torch.__version__}, {options.threads} threads, eager, {options.rounds} rounds, "
        f"batch {options.batch} of {SHAPE}, {size:.2f} M parameters"
    )
    compare_operators(options) if options.profile else compare(options)


if __name__ == "__main__":
    main()
