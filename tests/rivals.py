"""Start two trainings in one folder at a random distance in time, and look at what is left.

    python tests/rivals.py FOLDER COUNT

Both are forked from this process, which has imported everything. Prints, as JSON, how often the
later one was refused, and what was wrong.
"""

import json
import os
import random
import sys
import time
import warnings
from collections import Counter
from importlib import import_module
from pathlib import Path

import torch

from crashing import TINY
from fewstep import data
from fewstep.errors import InputError
from fewstep.recipe import read
from fewstep.run_folder import Run
from fewstep.runner import run_recipe

STEPS = 100
TRAINED, REFUSED, FINISHED, FAILED = 0, 2, 3, 1


def train(folder):
    """Train in a child process, whose exit code says how it ended."""
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        recipe = read("digits-flow", [*TINY[:5], "evaluate.steps=[1]", f"fit.steps={STEPS}"])
        code = TRAINED if list(run_recipe(recipe, folder, log_every=1)) else FINISHED
    except InputError as error:
        code = REFUSED if "is in use by" in str(error) else FAILED
        print(error, file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def rivals(root, count):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    data.load("digits")
    import_module("torch._dynamo")  # what each of the processes would import again
    lengths: list[float] = []
    for name in ("alone", "again", "once more"):  # the first is slow
        start = time.monotonic()
        assert exit_code(train(root / name)) == TRAINED
        lengths.append(time.monotonic() - start)
    length = min(lengths)
    dice, ends, bad = random.Random(0), Counter(), []
    weights = (root / "alone" / "model.safetensors").read_bytes()
    for number in range(count):
        folder, offset = root / str(number), dice.uniform(0, 0.9 * length)
        first = train(folder)
        time.sleep(offset)
        codes = [exit_code(child) for child in (first, train(folder))]
        steps = [line["step"] for line in Run(folder).progress() if "seconds" in line]
        ends[f"{codes[0]}, {codes[1]}"] += 1
        # the second may win at the start, and find a finished run at the end
        right = sorted(codes) in ([TRAINED, REFUSED], [TRAINED, FINISHED])
        same = (folder / "model.safetensors").read_bytes() == weights
        if not right or steps != list(range(1, STEPS + 1)) or not same:
            bad.append(f"{number}: after {offset:.3f} s, exit codes {codes}, steps {steps}")
        if (folder / ".lock").exists():
            bad.append(f"{number}: the lock is left over")
    return {"ends": ends, "bad": bad}


if __name__ == "__main__":
    print(json.dumps(rivals(Path(sys.argv[1]).absolute(), int(sys.argv[2]))))
