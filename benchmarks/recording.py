"""Sampling on the CPU, as `fewstep record` does it: freed memory kept, and bfloat16.

    OMP_NUM_THREADS=1 python benchmarks/recording.py [--run fewstep:cifar10-teacher] [--rounds 5]

Each round samples one tile of images in four processes, in turn: in float32 and bfloat16, with
glibc's defaults and with freed memory kept. Prints the network calls in a second of CPU time, one
image each (medians of the rounds), the ratio to the first row (median of the rounds' ratios), and
how far the images are from those in float32, in grey levels of 255. Eager, one thread.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODES = [(precision, memory) for precision in ("f32", "bf16") for memory in ("default", "keep")]


def child(precision, memory, options):
    """Print the network calls in a second of CPU time, and save the images."""
    from fewstep import allocator

    if memory == "keep":
        allocator.keep_freed_memory()
        assert allocator.keeps_freed_memory(), "only Linux with glibc, without a GPU"
    import torch

    from fewstep import runs
    from fewstep.abilities import with_guidance
    from fewstep.recording import Recording, Tiles
    from fewstep.sampler_choices import with_sampler_choices

    torch.set_num_threads(1)
    recipe = runs.describe(options.run).get("recipe")
    generator = runs.load(options.run)
    generator = with_sampler_choices(generator, recipe, sampler="multistep", grid=None, clip=1.0)
    generator = with_guidance(generator, options.guidance, recipe).with_precision(precision)
    for steps in (2, options.steps):  # the first tile allocates the memory
        tiles = Tiles(generator, Recording(count=1024, steps=steps))
        start = time.process_time()
        images = tiles.records(range(tiles.size))["x0"]
        seconds = time.process_time() - start
    calls = 2 if options.guidance != 1 else 1
    torch.save(images, options.images)
    print(tiles.size * options.steps * calls / seconds)


def measure(mode, options, folder):
    words = [sys.executable, __file__, "--child", *mode, "--run", options.run]
    words += ["--steps", str(options.steps), "--guidance", str(options.guidance)]
    words += ["--images", str(folder / "-".join(mode))]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", default="fewstep:cifar10-teacher")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--images", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options)
        return
    import torch

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rounds = [[measure(mode, options, folder) for mode in MODES] for _ in range(options.rounds)]
        images = [torch.load(folder / "-".join(mode)) for mode in MODES]
    for i, mode in enumerate(MODES):
        calls = statistics.median(row[i] for row in rounds)
        ratio = statistics.median(row[i] / row[0] for row in rounds)
        error = 127.5 * (images[i] - images[0]).square().mean().sqrt().item()
        print(f"{' '.join(mode):<13} {calls:6.0f} calls/s, {ratio:.2f} x, rms {error:.2f} of 255")


if __name__ == "__main__":
    main()
