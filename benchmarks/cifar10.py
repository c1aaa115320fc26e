"""The table of CIFAR-10: teacher and students by two extractors, a grid, and a blind test.

    OMP_NUM_THREADS=1 python benchmarks/cifar10.py RUN@STEPS[~GUIDANCE[~SAMPLER]] ... --out DIR

RUN is whatever `fewstep sample` takes; STEPS are numbers of sampling steps:
`runs/cifar10-cpu-flow@1,4,16,50~2~multistep runs/cifar10-cpu-regress@1`. The samples of a row are
generated once, kept in DIR, and measured by both extractors; the script resumes. DIR gets

- scores.jsonl, table.md: one line for each row;
- grid.png: below each other the rows of the table, each with the same noise and classes;
- blind.png: a hundred samples of the last row in random order, numbered row by row, to be sorted
  into classes by eye, and key.txt with the answers. Do not open key.txt first.

The two extractors have other scales: compare within a column. Accuracy is the share of samples
that the ResNet-56 takes for their class. Copies are the share of samples that are nearer to a
training image, in features of the ResNet-56, than nearly all held-out images are. Milliseconds are
those of one image at a time, eager.
"""

import argparse
import json
import re
from pathlib import Path

import torch

from fewstep import data, runs
from fewstep.abilities import with_guidance
from fewstep.allocator import keep_freed_memory
from fewstep.drawing import generate
from fewstep.evaluation import Evaluator, count_evaluations, count_parameters, seconds_per_image
from fewstep.files import atomic_write
from fewstep.images import grid
from fewstep.metrics import EvalProtocol, ScoreAccumulator
from fewstep.requests import make_requests
from fewstep.sampler_choices import with_sampler_choices

EXTRACTORS = {"resnet56-cifar10": "ResNet-56", "classifier": "classifier"}
BATCH = 500
WORD = re.compile(
    r"(?P<run>[^@]+)@(?P<steps>\d+(,\d+)*)(~(?P<guidance>\d+(\.\d+)?))?(~(?P<sampler>[a-z]\w*))?"
)


class Row:
    """A generator and its number of steps, with its samples."""

    def __init__(self, name, generator, steps, images, count, folder):
        self.name, self.generator, self.steps, self.count = name, generator, steps, count
        self.requests = make_requests(generator.spec, images)
        weights, precision = runs.weights_hash(generator)[:16], generator.denoiser.precision
        self.key = f"{weights}-{precision}-{steps}"
        self.path = folder / f"{self.key}.pt"

    def samples(self):
        """The samples, from their file as far as they are there."""
        parts = list(torch.load(self.path).split(BATCH)) if self.path.exists() else []
        parts = [part for part in parts if len(part) == BATCH]
        batches = -(-self.count // BATCH)
        for k in range(len(parts), batches):
            work = generate(
                self.generator, self.count, steps=self.steps, batch=BATCH, share=(k, batches),
                **self.requests.turns,
            )  # fmt: skip
            parts += [images for _, images in work]
            with atomic_write(self.path) as file:
                torch.save(torch.cat(parts), file)
            print(f"{self.name}: {sum(map(len, parts))} of {self.count}", flush=True)
        return torch.cat(parts)[: self.count]

    def score(self, evaluators):
        """All figures of the row."""
        images, classes = self.samples(), self.requests.classes_of(range(self.count))
        row = {"name": self.name, "key": self.key, "samples": self.count}
        row |= {"calls": count_evaluations(self.generator, self.steps)}
        row["parameters"] = count_parameters(self.generator)
        row["ms"] = 1000 * seconds_per_image(self.generator.with_precision("f32"), self.steps)
        for name, evaluator in evaluators.items():
            cycle = self.requests.cycle
            accumulator = ScoreAccumulator(evaluator.reference, self.count, cycle=cycle)
            accumulator.update(images, classes)
            found = accumulator.measures()
            row[name] = (found.frechet, found.frechet_high - found.frechet)
            row[f"{name} accuracy"], row[f"{name} copies"] = found.accuracy, found.copies
            row[f"{name} hash"] = evaluator.extractor.hash
        return row


def rows_of(word, options, images):
    match = WORD.fullmatch(word)
    if not match:
        raise SystemExit(f"{word}: write RUN@STEPS, such as runs/cifar10-cpu-flow@1,4,16~2")
    run, weight, sampler = match["run"], float(match["guidance"] or 1), match["sampler"]
    recipe = runs.describe(run).get("recipe")
    generator = runs.load(run).with_precision(options.precision)
    generator = with_sampler_choices(generator, recipe, sampler=sampler, grid=None)
    generator = with_guidance(generator, weight, recipe)
    for steps in map(int, match["steps"].split(",")):
        name = f"{Path(run).name}, {steps} step{'s' * (steps > 1)}"
        name += f" of {sampler}" if sampler else ""
        name += f", guidance {weight:g}" if weight != 1 else ""
        yield Row(name, generator, steps, images, options.samples, options.out)


def table(rows):
    heads = ["", "calls", *(f"Fréchet, {name}" for name in EXTRACTORS.values())]
    heads += ["accuracy", "copies", "parameters", "ms an image"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        distances = [f"{row[name][0]:.2f} ± {row[name][1]:.2f}" for name in EXTRACTORS]
        shares = [f"{100 * row[f'resnet56-cifar10 {key}']:.1f} %" for key in ("accuracy", "copies")]
        cells = [row["name"], str(row["calls"]), *distances, *shares]
        cells += [f"{row['parameters']:,}", f"{row['ms']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def blind(row, folder):
    """A hundred samples in random order, and their classes in a file."""
    order = torch.randperm(100, generator=torch.Generator().manual_seed(2026))
    grid(row.samples()[100:200][order], columns=10, scale=3).save(folder / "blind.png")
    classes = row.requests.classes_of(range(100, 200))[order]
    names = [row.generator.spec.class_names[i] for i in classes.tolist()]
    (folder / "key.txt").write_text("\n".join(names) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", metavar="RUN@STEPS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    options = parser.parse_args()
    if options.samples < 200:
        parser.error("--samples must be at least 200, of which the blind test takes a hundred")
    keep_freed_memory()
    options.out.mkdir(parents=True, exist_ok=True)
    images = data.load("cifar10")
    rows = [row for word in options.rows for row in rows_of(word, options, images)]
    evaluators = {n: Evaluator(images, EvalProtocol(options.samples, n)) for n in EXTRACTORS}
    scores = options.out / "scores.jsonl"
    lines = scores.read_text().splitlines() if scores.exists() else []
    done = {(line["key"], line["samples"]): line for line in map(json.loads, lines)}
    for row in rows:
        key = row.key, row.count
        if key not in done:
            done[key] = row.score(evaluators)
            with scores.open("a") as file:
                file.write(json.dumps(done[key]) + "\n")
        (options.out / "table.md").write_text(table(done.values()))
    print(table([done[row.key, row.count] for row in rows]))
    pictures = torch.cat([row.samples()[:20] for row in rows])
    grid(pictures, columns=20).save(options.out / "grid.png")
    blind(rows[-1], options.out)


if __name__ == "__main__":
    main()
