"""Do couplings, Muon and loss weights pay? Each against the plain recipe at equal time.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py --out FOLDER [--seconds 300] [--seeds 3]
    OMP_NUM_THREADS=1 python benchmarks/recipes.py --out FOLDER --table

Teachers of Fashion-MNIST at 16x16, the preset `fashion-flow` with one change each. Every variant
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

import torch

from fewstep import data, recipe
from fewstep.assembly import assemble
from fewstep.evaluation import Evaluator
from fewstep.metrics import EvalProtocol
from fewstep.trainer import NonFiniteLoss

VARIANTS = {
    "plain": [],
    "minibatch-ot": ["method.coupling=minibatch-ot"],
    "semidiscrete-ot": ["method.coupling=semidiscrete-ot"],
    "muon": ["fit.optimizer=muon"],
    "learned": ["method.weight=learned"],
    "p2": ["method.weight=p2"],
}
STEPS = (4, 16)
ROUNDS, ROUND = 5, 6
"""Rounds of the trial, and training steps in each."""
T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t of a 95 % interval, by the number of seeds."""


def build(variant, steps, seed):
    settings = [*VARIANTS[variant], f"fit.steps={steps}", f"fit.seed={seed}"]
    config = recipe.read("fashion-flow", settings)
    return next(assemble(config, torch.device("cpu")).trainings(config.fit))


def step_times(path):
    """Seconds of CPU time of a training step of each variant, from `path` or measured."""
    if path.exists():
        return json.loads(path.read_text())
    trials = {variant: build(variant, 10_000, 0) for variant in VARIANTS}
    times = {variant: [] for variant in VARIANTS}
    for _ in range(ROUNDS + 1):
        for variant, trial in trials.items():
            start = time.process_time()
            for _ in range(ROUND):
                trial.advance()
            times[variant].append((time.process_time() - start) / ROUND)
    best = {variant: min(values[1:]) for variant, values in times.items()}  # after the first
    path.write_text(json.dumps(best))
    return best


def measure(variant, steps, seed, evaluator):
    training = build(variant, steps, seed)
    start = time.process_time()
    for _ in training:
        pass
    row = {"variant": variant, "seed": seed, "steps": steps}
    row["seconds"] = time.process_time() - start
    for count in STEPS:
        score = evaluator.score(training.generator(), steps=count)
        row[f"frechet {count}"], row[f"accuracy {count}"] = score.frechet, score.accuracy
    return row


def run(options, results, done):
    evaluator = Evaluator(
        data.load("fashion-mnist", size=16), EvalProtocol(options.samples, "classifier")
    )
    times = step_times(options.out / "times.json")
    for seed in range(options.seeds):
        for variant in VARIANTS:
            if (variant, seed) in done:
                continue
            steps = max(2, round(options.seconds / times[variant]))
            try:
                row = measure(variant, steps, seed, evaluator)
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


def show(rows):
    heads = [f"{what}, {count} steps" for count in STEPS for what in ("Fréchet", "minus plain")]
    print(f"| variant | training steps | CPU seconds | {' | '.join(heads)} | accuracy, 16 steps |")
    print("|---" * (len(heads) + 4) + "|")
    by = {(row["variant"], row["seed"]): row for row in rows if "error" not in row}
    for variant in VARIANTS:
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
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=3, choices=[1, *T95])
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"

    def read():
        return [json.loads(line) for line in results.read_text().splitlines()]

    done = read() if results.exists() else []
    if not options.table:
        torch.set_num_threads(1)
        run(options, results, {(row["variant"], row["seed"]) for row in done})
        done = read()
    show(done)


if __name__ == "__main__":
    main()
