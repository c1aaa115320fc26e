"""Classifier-free guidance, in an interval of times, and autoguidance: accuracy and distance.

    OMP_NUM_THREADS=1 python benchmarks/guidance.py RUN WEAK [--figure guidance.png]

RUN is a teacher with classes that was trained with condition dropout, and WEAK a worse network of
the same data. Every score is kept in RUN/scores.jsonl, so that a second call costs seconds. The
interval is the one of INTERVALS with the smallest distance at weight 2, and then used at all
weights.
"""

import argparse
import math
from functools import partial

from fewstep import comparison, metrics
from fewstep.evaluation import Evaluator
from fewstep.loading import load_run, reference_images
from fewstep.sampler_choices import convert_step

WEIGHTS = (1.25, 1.5, 2.0, 3.0, 5.0)
INTERVALS = ((0.0, 0.5), (0.2, 0.8), (0.5, 1.0), (0.4, 0.7))
STEPS = 8


def measure(evaluator, generator, address):
    """The score of a generator with 2M, read from the folder at `address` if it is there."""
    generator = generator.with_sampler(step=convert_step(generator.step, "multistep"))
    return comparison.measure(evaluator, generator, address, STEPS)


def line(name, weight, score):
    m = score.measures
    low, high = accuracy_interval(m.accuracy, score.samples)
    return (
        f"| {name} | {weight:g} | {score.evaluations} | {m.frechet:.2f} "
        f"({m.frechet_low:.2f} to {m.frechet_high:.2f}) | {m.accuracy:.1%} ({low:.1%} to "
        f"{high:.1%}) | {m.recall:.3f} |"
    )


def accuracy_interval(share, count, z=1.96):
    """Wilson's 95 % interval of a share of `count` images."""
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    width = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z**2 / count)
    return middle - width, middle + width


def draw(rows, plain, path):
    """Distance and accuracy against the weight, with 95 % intervals, one line for each kind."""
    from matplotlib.figure import Figure

    from fewstep.report.svg import LOOKS

    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2)
    for (name, scores), look in zip(rows.items(), LOOKS, strict=False):
        weights = [1.0, *scores]
        values = [plain, *scores.values()]
        style = {"color": look.colour, "marker": look.marker, "markersize": 5, "label": name}
        distances = [score.measures.frechet for score in values]
        low = [d - score.measures.frechet_low for d, score in zip(distances, values, strict=True)]
        high = [score.measures.frechet_high - d for d, score in zip(distances, values, strict=True)]
        left.errorbar(weights, distances, yerr=(low, high), capsize=2, **style)
        shares = [score.measures.accuracy for score in values]
        ends = [accuracy_interval(s, v.samples) for s, v in zip(shares, values, strict=True)]
        low = [s - end[0] for s, end in zip(shares, ends, strict=True)]
        high = [end[1] - s for s, end in zip(shares, ends, strict=True)]
        right.errorbar(weights, shares, yerr=(low, high), capsize=2, **style)
    left.set_yscale("log")
    left.set_ylabel("Fréchet distance, lower is better")
    right.set_ylabel("accuracy of the classifier")
    for axes in (left, right):
        axes.set_xlabel("weight of guidance; 1 is none")
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("weak")
    parser.add_argument("--data", help="the set to compare with, by default that of RUN")
    parser.add_argument("--figure")
    options = parser.parse_args()
    run, weak = load_run(options.run), load_run(options.weak)
    protocol = metrics.protocol("quick")
    evaluator = comparison.prepare(Evaluator(reference_images(run, options.data), protocol))
    print("| guidance | weight | evaluations | Fréchet distance | accuracy | recall |")
    print("|---|---|---|---|---|---|")
    teacher = run.generator
    plain = measure(evaluator, teacher, run.address)
    print(line("none", 1, plain), flush=True)
    weaker = measure(evaluator, weak.generator, weak.address)
    print(line("the worse network alone", 1, weaker), flush=True)
    trials = {}
    for low, high in INTERVALS:
        guided = teacher.with_guidance(2.0, interval=(low, high))
        score = measure(evaluator, guided, run.address)
        trials[low, high] = score
        print(line(f"in [{low:g}, {high:g}]", 2, score), flush=True)
    best = min(trials, key=lambda interval: trials[interval].frechet)
    kinds = {
        "at all times": teacher.with_guidance,
        f"in [{best[0]:g}, {best[1]:g}]": partial(teacher.with_guidance, interval=best),
        "autoguidance": partial(teacher.with_autoguidance, weak=weak.generator),
    }
    rows = {name: {} for name in kinds}
    for weight in WEIGHTS:
        for name, guide in kinds.items():
            score = measure(evaluator, guide(weight), run.address)
            rows[name][weight] = score
            print(line(name, weight, score), flush=True)
    if options.figure:
        draw(rows, plain, options.figure)


if __name__ == "__main__":
    main()
