"""How far each method gets on eight Gaussians, as a markdown table.

    OMP_NUM_THREADS=1 python benchmarks/toy.py [--only regress meanflow] [--seeds 0 1] [--longer 4]

Networks, teacher and settings are those of tests/methods/test_contract.py; `--longer` multiplies
the steps of training. The distance is sliced Wasserstein, of 4,000 samples to as many points of
the data, and `share` is its ratio to that of the teacher in one step. The first rows are
references: other points of the data, a Gaussian of the data's mean and variance, and the teacher.
ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA and MKL_CBWR imitate the rounding of other processors.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

# in place of this folder, whose files have names that tests have too
sys.path[0] = str(Path(__file__).parents[1] / "tests")

import toy  # noqa: E402
from fewstep import plugins  # noqa: E402
from fewstep.data.toys import eight_gaussians  # noqa: E402
from fewstep.metrics import sliced_wasserstein  # noqa: E402
from fewstep.noise import noise_from_seeds  # noqa: E402
from methods import test_contract as contract  # noqa: E402

NAMES = [*plugins.names("method"), *contract.VARIANTS]
KERNELS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")


def references(teacher):
    """(name, sampling steps, distance) of what needs no training of its own."""
    truth, other = (eight_gaussians().points(4000, seed=seed)[0].float() for seed in (1, 2))
    gaussian = truth.std() * noise_from_seeds(range(4000), (2,))
    yield "data", "", sliced_wasserstein(other, truth)
    yield "Gaussian", "", sliced_wasserstein(gaussian, truth)
    for steps in (1, 12, 50):
        yield "teacher", steps, toy.distance(teacher, steps)


def measure(names, seed, longer, row):
    """Train a teacher, then each method, and call `row` with the results."""
    teacher = toy.train_teacher(seed)
    start = toy.distance(teacher, 1)
    for name, steps, distance in references(teacher):
        row(name, steps, distance, start, 0.0)
    circuit = None
    with tempfile.TemporaryDirectory() as folder:
        pairs, rings = Path(folder) / "pairs", Path(folder) / "rings"
        toy.record_pairs(teacher, pairs, seed=seed)
        if "residual_sum" in names:
            circuit = toy.train_circuit(seed)
            toy.record_rings(circuit, rings, seed=seed)
        for name in names:
            steps, _ = contract.BOUNDS.get(name, contract.ONE_STEP)
            source = (circuit, rings) if name == "residual_sum" else (teacher, pairs)
            began = time.process_time()
            student = contract.learn(name, *source, seed=seed, longer=longer)
            row(name, steps, toy.distance(student, steps), start, time.process_time() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--longer", type=int, default=1, help="times the contract's steps")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kernels = " ".join(os.environ.get(name, "native") for name in KERNELS)
    print("| method | sampling steps | kernels | seed | distance | share | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    for seed in options.seeds:

        def row(name, steps, distance, start, seconds, seed=seed):
            share = distance / start
            print(
                f"| {name} | {steps} | {kernels} | {seed} | {distance:.4f} | {share:.3f} "
                f"| {seconds:.1f} |",
                flush=True,
            )

        measure(options.only, seed, options.longer, row)


if __name__ == "__main__":
    main()
