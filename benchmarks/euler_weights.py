"""What the weights of a k-step student's steps are worth: the same network under two rules.

    python benchmarks/euler_weights.py RUN [--samples 2000]

Right: Euler on the line from noise to image, which moves (t − s)/t of the way to the predicted
image: 1/4, 1/3, 1/2, 1 in four steps. Wrong: 1 − s of the way, 1/4, 1/2, 3/4, 1, as a published
four-step sampler does; it leaves less noise at the later steps than the student was trained for.
"""

import argparse

from fewstep.cli.evaluate import show
from fewstep.comparison import load_run, reference_images
from fewstep.evaluation import Evaluator
from fewstep.metrics import EvalProtocol


def euler(walk, x_t, t, s):
    x0 = walk.ask(x_t, t).x0
    return (x0 if s is None else x_t + (t - s) / t * (x0 - x_t)), None


def wrong(walk, x_t, t, s):
    x0 = walk.ask(x_t, t).x0
    return (x0 if s is None else x_t + (1 - s) * (x0 - x_t)), None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--samples", type=int, default=2000)
    told = parser.parse_args()
    run = load_run(told.run)
    generator = run.generator
    (steps,) = generator.grid.counts
    protocol = EvalProtocol(told.samples, "classifier")
    baseline = Evaluator(reference_images(run), protocol)
    rules = [generator.with_sampler(step=step) for step in (generator.step, euler, wrong)]
    scores = [baseline.score(rule, steps=steps) for rule in rules]
    show((told.run, score) for score in scores)


if __name__ == "__main__":
    main()
