"""Print how many training steps of a recipe fit into a number of seconds on this machine.

    python benchmarks/steps_that_fit.py RECIPE SECONDS [key=value ...]

It takes some steps without saving them, after three that compile, on the GPU if there is one.
"""

import sys
import time

import torch

from fewstep import recipe
from fewstep.allocator import keep_freed_memory
from fewstep.assembly import assemble
from fewstep.distributed import device
from fewstep.errors import InputError

WARM, STEPS = 3, 20


def main():
    name, seconds, *settings = sys.argv[1:]
    keep_freed_memory()
    try:
        config = recipe.read(name, settings)
        training = next(assemble(config, device()).trainings(config.fit))
    except InputError as error:
        sys.exit(f"steps_that_fit: {error}")

    def clock():
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(WARM):
        training.advance()
    start = clock()
    for _ in range(STEPS):
        training.advance()
    per_step = (clock() - start) / STEPS
    # a schedule has a warm-up and an average, which a handful of steps cannot have
    print(max(100, int(float(seconds) / per_step)))


if __name__ == "__main__":
    main()
