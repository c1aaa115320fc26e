"""How far each method gets on eight Gaussians in a few seconds, as a markdown table.

    OMP_NUM_THREADS=1 python benchmarks/toy.py [--only regress meanflow] [--longer 4]

Networks, teacher and settings are those of tests/methods/test_contract.py, whose training may be
made longer. A method starts as the teacher does. The distance is sliced Wasserstein, of 4,000
samples to as many points of the truth; the table's first row is what two draws of the truth have
between them.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import torch

# in place of this folder, whose files have names that tests have too
sys.path[0] = str(Path(__file__).parents[1] / "tests")

import toy  # noqa: E402
from fewstep.data.toys import eight_gaussians  # noqa: E402
from fewstep.metrics import sliced_wasserstein  # noqa: E402
from methods import test_contract as contract  # noqa: E402
from methods.test_toy_table import NAMES, learnt  # noqa: E402


def row(name, steps, distance, start, seconds=None):
    took = f"{seconds:.1f}" if seconds else ""
    print(f"| {name} | {steps} | {distance:.4f} | {distance / start:.2f} | {took} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--longer", type=int, default=1, help="times the contract's steps")
    told = parser.parse_args()
    torch.set_num_threads(1)
    teacher = toy.train_teacher()
    start = toy.distance(teacher, 1)
    draws = [eight_gaussians().points(4000, seed=seed)[0].float() for seed in (1, 2)]
    print("| method | steps | distance | of the teacher's one step | seconds |")
    print("|---|---|---|---|---|")
    row("the truth", "", sliced_wasserstein(*draws), start)
    for steps in (1, 50):
        row("teacher", steps, toy.distance(teacher, steps), start)
    with tempfile.TemporaryDirectory() as folder:
        pairs, rings = Path(folder) / "pairs", Path(folder) / "rings"
        toy.record_pairs(teacher, pairs)
        circuit = toy.train_circuit()
        toy.record_rings(circuit, rings)
        for name in told.only:
            steps, _ = contract.BEATS.get(name, contract.ONE_STEP)
            begun = time.perf_counter()
            sums = name == "residual_sum"
            source = (circuit, rings) if sums else (teacher, pairs)
            student = learnt(name, *source, longer=told.longer)
            seconds = time.perf_counter() - begun
            row(name, steps, toy.distance(student, steps), start, seconds)


if __name__ == "__main__":
    main()
