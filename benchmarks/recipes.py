"""Does a change of a teacher's recipe pay? Each against the plain recipe at equal time.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py --out FOLDER [--seconds 300] [--seeds 3]
    OMP_NUM_THREADS=1 python benchmarks/recipes.py --of cifar10 --out FOLDER --seeds 1
    OMP_NUM_THREADS=1 python benchmarks/recipes.py --out FOLDER --table

Teachers at 16x16 with one change each: `fashion`, the preset `fashion-flow` with couplings, Muon
and loss weights; `cifar10`, the preset `cifar10-cpu-flow`, sampled with its guidance. Every variant
has as many steps as fit into the seconds, by the time of its step: the fastest of several rounds,
in which the variants take turns, so that other work on the machine meets all of them. The rate
falls as a cosine over these steps. Seconds are CPU time of one thread, that of the threads which
read batches included; the dual weights of `semidiscrete-ot`, computed once for a set, are not. All
is kept in FOLDER, and what is there is left out, so that the script can be stopped and started
again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import NamedTuple

import torch

from fewstep import data, recipe
from fewstep.allocator import keep_freed_memory
from fewstep.assembly import assemble
from fewstep.evaluation import Evaluator
from fewstep.metrics import EvalProtocol
from fewstep.trainer import NonFiniteLoss


class Trial(NamedTuple):
    """A preset, and changes of it."""

    preset: str
    data: str
    variants: dict[str, list[str]]
    settings: tuple[str, ...] = ()
    guidance: float = 1.0


TRIALS = {
    "fashion": Trial(
        "fashion-flow",
        "fashion-mnist",
        {
            "plain": [],
            "minibatch-ot": ["method.coupling=minibatch-ot"],
            "semidiscrete-ot": ["method.coupling=semidiscrete-ot"],
            "muon": ["fit.optimizer=muon"],
            "learned": ["method.weight=learned"],
            "p2": ["method.weight=p2"],
        },
    ),
    "cifar10": Trial(
        "cifar10-cpu-flow",
        "cifar10",
        {
            "plain": [],
            "adamw": ["fit.optimizer=adamw", "fit.lr=1e-3"],
            "uniform times": ["method.density=uniform"],
            "more noise": ["method.density.mean=0.5"],
            "less noise": ["method.density.mean=-0.5"],
            "no flips": ["data.flip=false"],
            "semidiscrete-ot": ["method.coupling=semidiscrete-ot"],
            "x0, min-snr": ["student.parametrization=x0", "method.weight=min-snr"],
            "no squares": ["student.backbone.patch=1", "student.backbone.attention=[8]"],
        },
        settings=("data.size=16", "student.backbone.attention=[4]"),
        guidance=2.0,
    ),
}
STEPS = (4, 16)
ROUNDS, ROUND = 5, 6
"""Rounds of the trial, and training steps in each."""
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t of a 95 % interval, by the number of seeds."""


def build(trial, variant, steps, seed):
    settings = [*trial.settings, *trial.variants[variant], f"fit.steps={steps}", f"fit.seed={seed}"]
    config = recipe.read(trial.preset, settings)
    return next(assemble(config, torch.device("cpu")).trainings(config.fit))


def step_times(trial, path):
    """Seconds of CPU time of a training step of each variant, from `path` or measured."""
    if path.exists():
        return json.loads(path.read_text())
    trainings = {variant: build(trial, variant, 10_000, 0) for variant in trial.variants}
    times = {variant: [] for variant in trial.variants}
    for _ in range(ROUNDS + 1):
        for variant, training in trainings.items():
            start = time.process_time()
            for _ in range(ROUND):
                training.advance()
            times[variant].append((time.process_time() - start) / ROUND)
    best = {variant: min(values[1:]) for variant, values in times.items()}  # after the first
    path.write_text(json.dumps(best))
    return best


def measure(trial, variant, steps, seed, evaluator):
    training = build(trial, variant, steps, seed)
    start = time.process_time()
    for _ in training:
        pass
    row = {"variant": variant, "seed": seed, "steps": steps}
    row["seconds"] = time.process_time() - start
    generator = training.generator()
    if trial.guidance != 1:
        generator = generator.with_guidance(trial.guidance)
    for count in STEPS:
        score = evaluator.score(generator, steps=count)
        row[f"frechet {count}"], row[f"accuracy {count}"] = score.frechet, score.accuracy
    return row


def run(options, results, done):
    trial = TRIALS[options.of]
    images = data.load(trial.data, size=16)
    evaluator = Evaluator(images, EvalProtocol(options.samples, "classifier"))
    times = step_times(trial, options.out / f"{options.of}-times.json")
    for seed in range(options.seeds):
        for variant in trial.variants:
            if (variant, seed) in done:
                continue
            steps = max(2, round(options.seconds / times[variant]))
            try:
                row = measure(trial, variant, steps, seed, evaluator)
            except NonFiniteLoss as error:
                row = {"variant": variant, "seed": seed, "steps": steps, "error": str(error)}
            print(json.dumps(row), flush=True)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")


def mean(values):
    """The mean and the half-width of its 95 % interval over seeds, as text."""
    values = torch.tensor(values, dtype=torch.float64)
    half = T95[len(values)] * values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{values.mean().item():.2f}" + (f" ± {half:.2f}" if half else "")


def show(trial, rows):
    heads = [f"{what}, {count} steps" for count in STEPS for what in ("Fréchet", "minus plain")]
    print(f"| variant | training steps | CPU seconds | {' | '.join(heads)} | accuracy, 16 steps |")
    print("|---" * (len(heads) + 4) + "|")
    by = {(row["variant"], row["seed"]): row for row in rows if "error" not in row}
    for variant in trial.variants:
        seeds = [seed for name, seed in by if name == variant]
        if not seeds:
            continue
        own = [by[variant, seed] for seed in seeds]
        cells = [f"`{variant}`", f"{own[0]['steps']:,}", mean([row["seconds"] for row in own])]
        for count in STEPS:
            key = f"frechet {count}"
            cells.append(mean([row[key] for row in own]))
            pairs = [
                (by[variant, s][key], by["plain", s][key]) for s in seeds if ("plain", s) in by
            ]
            is_plain = variant == "plain"
            cells.append("" if is_plain or not pairs else mean([a - b for a, b in pairs]))
        cells.append(f"{sum(row['accuracy 16'] for row in own) / len(own):.1%}")
        print(f"| {' | '.join(cells)} |")
    for row in rows:
        if "error" in row:
            print(f"{row['variant']}, seed {row['seed']}: {row['error']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", choices=TRIALS, default="fashion")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=3, choices=[1, *T95])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / f"{options.of}-results.jsonl"

    def read():
        return [json.loads(line) for line in results.read_text().splitlines()]

    done = read() if results.exists() else []
    if not options.table:
        torch.set_num_threads(1)
        keep_freed_memory()
        run(options, results, {(row["variant"], row["seed"]) for row in done})
        done = read()
    show(TRIALS[options.of], done)


if __name__ == "__main__":
    main()
