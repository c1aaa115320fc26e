"""Does every parametrization train under every process? One minute of one core each, on digits.

    OMP_NUM_THREADS=1 python benchmarks/teachers.py --out FOLDER [--seconds 60] [--only vp]
    OMP_NUM_THREADS=1 python benchmarks/teachers.py --out FOLDER --table

The pairs are those of the registries; `mixed` and those of published checkpoints are no choices of
a new network, and `table` is what `linear-betas` computes. All train one network with the same
settings and distribution of sigma/alpha, and are sampled by DPM-Solver++ (2M) in 16 steps. The
seconds are CPU time of the process. Pairs that are in FOLDER/results.jsonl are left out, so that
the script can be stopped and started again.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from fewstep import data, plugins, recipe
from fewstep.assembly import assemble
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.metrics import EvalProtocol
from fewstep.trainer import NonFiniteLoss, Training

STEPS = 16
# a new network has them through other names: see above
NO_CHOICE = {"mixed", "edm-boundary", "scaled-score", "table"}
TRIAL = 12
"""Steps that measure the time of a step; the first two are slower."""


def choices(noun):
    return [name for name in plugins.names(noun) if name not in NO_CHOICE]


def read(parametrization, process, steps):
    own = {"edm": {"sigma_data": 0.75}}.get(parametrization, {})
    settings = [
        f"student.process.name={process}",
        f"student.parametrization.name={parametrization}",
        *(f"student.parametrization.{key}={value}" for key, value in own.items()),
        "student.backbone.channels=[24, 48]",
        f"student.backbone.pace={0.004 if parametrization == 'edm' else 0.03}",
        "method.density={name='lognormal', mean=-0.5, std=1.6}",
        "method.sampler={name='multistep', clip=1.0}",
        f"method.grid={'karras' if process == 've' else 'uniform'}",
        # where sigma is 50 times alpha: `ve` ends at 80, DDPM's table at 157, `flow` at infinity
        f"student.start={{snr={50.0**-2}}}",
        "method.condition_dropout=0.0",
        f"fit.steps={steps}",
        "fit.batch=64",
        "fit.lr=4e-3",
    ]
    return recipe.read("digits-flow", settings)


def train(parametrization, process, seconds):
    """A training of `seconds` of CPU time, and its losses."""

    def build(steps):
        config = read(parametrization, process, steps)
        return next(assemble(config, torch.device("cpu")).trainings(config.fit))

    trial = build(TRIAL)
    for _ in range(2):
        trial.advance()
    start = time.process_time()
    for _ in range(TRIAL - 2):
        trial.advance()
    steps = max(20, round(seconds / (time.process_time() - start) * (TRIAL - 2)))
    training: Training = build(steps)
    start = time.process_time()
    losses = [progress.numbers["student/loss"] for progress in training]
    return training, losses, time.process_time() - start


def measure(parametrization, process, seconds, evaluator):
    training, losses, spent = train(parametrization, process, seconds)
    tenth = max(1, len(losses) // 10)
    first, last = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    score = evaluator.score(training.generator(), steps=STEPS)
    return {
        "steps": len(losses),
        "seconds": spent,
        "first": first,
        "last": last,
        "accuracy": score.accuracy,
        "frechet": score.frechet,
        "interval": [score.measures.frechet_low, score.measures.frechet_high],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--only", help="only pairs with this name")
    parser.add_argument("--table", action="store_true", help="only print what was measured")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "results.jsonl"
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    if not options.table:
        torch.set_num_threads(1)
        run(options, results, {(row["parametrization"], row["process"]) for row in done})
        done = [json.loads(line) for line in results.read_text().splitlines()]
    show(done)


def run(options, results, done):
    evaluator = Evaluator(data.load("digits"), EvalProtocol(options.samples, "classifier"))
    for parametrization in choices("parametrization"):
        for process in choices("process"):
            pair = parametrization, process
            if pair in done or (options.only and options.only not in pair):
                continue
            row = {"parametrization": parametrization, "process": process}
            try:
                row |= measure(*pair, options.seconds, evaluator)
            except (InputError, NonFiniteLoss) as error:
                row["error"] = str(error)
            print(json.dumps(row), flush=True)
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")


def show(rows):
    print("| parametrization | process | steps | loss, first to last tenth | accuracy | Fréchet |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        start = f"| `{row['parametrization']}` | `{row['process']}` |"
        if "error" in row:
            print(f"{start} | | | {row['error']} |")
            continue
        loss = f"{row['first']:.3f} → {row['last']:.3f}"
        low, high = row["interval"]
        frechet = f"{row['frechet']:.2f} ({low:.2f} to {high:.2f})"
        print(f"{start} {row['steps']} | {loss} | {row['accuracy']:.1%} | {frechet} |")


if __name__ == "__main__":
    main()
