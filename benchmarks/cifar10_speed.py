"""Images a second in training on CIFAR-10, measure by measure, and the roofline of convolutions.

    python benchmarks/cifar10_speed.py [--rounds 9] [--batch 64] [--only diffusers patch]

Each contender is a process of its own with one thread; they take turns, step by step, and medians
of CPU time are compared. All see batches of CIFAR-10's shape. From top to bottom one measure is
added:

- diffusers: `UNet2DModel` of 2.7 M parameters in a plain loop (see train_step.py);
- same: our network of the same layers, in our training;
- memory: the same, with freed memory kept in huge pages, as `fewstep train` does;
- patch: the network of `cifar10-cpu-flow`, of the same size, on squares of 2x2 pixels;
- muon: with its optimiser, as the preset has it;
- bf16: in bfloat16, where the processor multiplies matrices of it;
- compile: in bfloat16, compiled.

The roofline is the time of the convolutions alone, of the preset's network: each shape is measured
by itself, forward and backward, with all that surrounds it left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.allocator import keep_freed_memory
from fewstep.backbones import UNetConfig

SAME = UNetConfig(channels=(32, 64, 128), layers=1, attention=(8,))
SHAPE = (3, 32, 32)
FAST = {
    "patch": ["fit.optimizer=adamw"],
    "muon": [],
    "bf16": ["fit.precision=bf16"],
    "compile": ["fit.precision=bf16", "fit.compile=true", "fit.channels_last=true"],
}
NAMES = ["diffusers", "same", "memory", *FAST]


def from_preset(batch, settings):
    from fewstep import recipe
    from fewstep.assembly import assemble

    config = recipe.read("cifar10-cpu-flow", [f"fit.batch={batch}", *settings])
    return next(assemble(config, torch.device("cpu")).trainings(config.fit))


def step_of(name, batch):
    if name not in ("diffusers", "same"):
        keep_freed_memory()
    if name in FAST:
        return from_preset(batch, FAST[name]).advance
    import train_step

    if name == "diffusers":
        return train_step.plain(SHAPE, SAME, batch, fused=False)
    return train_step.ours(SHAPE, SAME, batch)


def child(name, batch):
    """Take a training step for each line of the input, and print its CPU seconds.

    As "roofline", measure the convolutions in the precision that each line names.
    """
    torch.set_num_threads(1)
    if name == "roofline":
        keep_freed_memory()
        for line in sys.stdin:
            print(json.dumps(roofline(batch, line.strip())), flush=True)
        return
    step = step_of(name, batch)
    for _ in sys.stdin:
        start = time.process_time()
        step()
        print(time.process_time() - start, flush=True)


def convolutions(batch):
    """How often the preset's network has each convolution, by shapes and settings."""
    from fewstep.condition import Condition

    network = from_preset(batch, []).method.student.backbone
    shapes = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution.default:
                x, weight, _, stride, padding, _, transposed, *_ = args
                settings = tuple(stride), tuple(padding), transposed
                shapes[(tuple(x.shape), tuple(weight.shape), *settings)] += 1
            return function(*args, **(kwargs or {}))

    labels = torch.zeros(batch, dtype=torch.long)
    with torch.no_grad(), Count():
        network(torch.zeros(batch, *SHAPE), torch.zeros(batch), cond=Condition(labels))
    return shapes


def roofline(batch, precision):
    """Seconds of all convolutions of a step, and the highest rate among them in GFLOP/s."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    total, best, work = 0.0, 0.0, 0.0
    layout = {"memory_format": torch.channels_last}
    for (inputs, kernel, stride, padding, transposed), number in convolutions(batch).items():
        apply = functional.conv_transpose2d if transposed else functional.conv2d
        x = torch.randn(inputs).to(dtype).contiguous(**layout).requires_grad_()
        weight = torch.randn(kernel).to(dtype).contiguous(**layout).requires_grad_()
        times = []
        for _ in range(7):
            start = time.process_time()
            y = apply(x, weight, stride=stride, padding=padding)
            y.backward(torch.ones_like(y))
            times.append(time.process_time() - start)
        seconds = statistics.median(times[1:])
        # forward, and backward twice as much: to the input and to the weights
        operations = 3 * 2 * (x if transposed else y)[:, 0].numel() * weight.numel()
        total, work = total + number * seconds, work + number * operations
        best = max(best, operations / seconds)
    return {"seconds": total, "rate": work / total / 1e9, "best": best / 1e9}


def start(name, batch):
    words = [sys.executable, "-W", "ignore", __file__, "--child", name, "--batch", str(batch)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask(process, line):
    process.stdin.write(line + "\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.batch)
        return
    processes = {name: start(name, options.batch) for name in options.only}
    times = {name: [] for name in options.only}
    for _ in range(options.rounds + 2):
        for name, process in processes.items():
            times[name].append(ask(process, "step"))
    for process in processes.values():
        process.kill()
    rates = {name: options.batch / statistics.median(each[2:]) for name, each in times.items()}
    first, before = rates[options.only[0]], None
    print(f"| measure | images a second | against {options.only[0]} | against the one above |")
    print("|---|---|---|---|")
    for name, rate in rates.items():
        last = "" if before is None else f"{rate / before:.2f}"
        print(f"| {name} | {rate:.1f} | {rate / first:.2f} | {last} |")
        before = rate
    process = start("roofline", options.batch)
    for precision in ("f32", "bf16"):
        row = ask(process, precision)
        print(
            f"convolutions alone in {precision}: {options.batch / row['seconds']:.0f} images a "
            f"second at {row['rate']:.0f} GFLOP/s; the fastest shape has {row['best']:.0f} GFLOP/s"
        )
    process.kill()


if __name__ == "__main__":
    main()
