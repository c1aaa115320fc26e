"""Training steps on the CPU with freed memory kept, against glibc's defaults.

    python benchmarks/allocator.py [--threads 1] [--rounds 5] [--steps 15] [--sizes 8x8 32x32]

Each round runs both in processes of their own, in turn; the ratio is the median of the rounds'
ratios of CPU time for a median step, above 1 where keeping freed memory is faster. Eager. Faults
are page faults per step, memory is the largest resident size. Both must end in the same loss.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {
    "8x8": ["fit.batch=96"],
    "32x32": [
        "data.size=32", "student.backbone.channels=[32,64,64]", "student.backbone.attention=[8]",
        "student.backbone.layers=2", "fit.batch=32",
    ],
}  # fmt: skip
WARM = 3


def child(mode, size, threads, steps):
    """Train and print CPU ms for a step, page faults for a step, MiB, and the last loss."""
    from fewstep.allocator import keep_freed_memory, keeps_freed_memory

    if mode == "keep":
        keep_freed_memory()
        assert keeps_freed_memory(), "only Linux with glibc, without a GPU"
    import torch

    from fewstep import recipe
    from fewstep.runner import run_recipe

    torch.set_num_threads(threads)
    changes = [*SIZES[size], f"fit.steps={WARM + steps}", "fit.warmup=0"]
    times, faults = [], []
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        for progress in run_recipe(recipe.read("digits-flow", changes), Path(folder) / "run"):
            times.append(1000 * (time.process_time() - start))
            faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            loss = progress.numbers["student/loss"]
            start = time.process_time()
    # the last step also writes the run folder
    per_step = (faults[-2] - faults[WARM - 1]) / (steps - 1)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(statistics.median(times[WARM:]), per_step, memory, loss.hex())


def measure(mode, size, args):
    words = [sys.executable, __file__, "--child", mode, "--sizes", size]
    words += ["--threads", str(args.threads), "--steps", str(args.steps)]
    *numbers, loss = subprocess.run(
        words, capture_output=True, text=True, check=True
    ).stdout.split()
    return [float(number) for number in numbers], loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--child", choices=["plain", "keep"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.sizes[0], args.threads, args.steps)
        return
    print(f"eager, {args.threads} thread(s), {args.rounds} rounds of {args.steps} steps, in turn")
    for size in args.sizes:
        rounds = [[measure(mode, size, args) for mode in ("plain", "keep")]
                  for _ in range(args.rounds)]  # fmt: skip
        assert len({loss for both in rounds for _, loss in both}) == 1, "the losses differ"
        ratio = statistics.median(plain[0] / keep[0] for (plain, _), (keep, _) in rounds)
        for i, mode in enumerate(("plain", "keep")):
            columns = zip(*(both[i][0] for both in rounds), strict=True)
            ms, faults, memory = map(statistics.median, columns)
            print(f"{size:<7} {mode:<6} {ms:7.1f} ms, {faults:8.0f} faults, {memory:5.0f} MiB")
        print(f"{size:<7} ratio  {ratio:7.2f}")


if __name__ == "__main__":
    main()
