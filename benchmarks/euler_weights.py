"""What the weights of a k-step student's steps are worth: the same network under two rules.

    python benchmarks/euler_weights.py RUN [--samples 2000]

Right: Euler on the line from noise to image, which moves (t − s)/t of the way to the predicted
image: 1/4, 1/3, 1/2, 1 in four steps. Wrong: 1 − s of the way, 1/4, 1/2, 3/4, 1, as a published
four-step sampler does; it leaves less noise at the later steps than the student was trained for.
"""

import argparse
from dataclasses import dataclass

from fewstep import Step
from fewstep.cli.evaluate import show
from fewstep.comparison import load_run, reference_images
from fewstep.evaluation import Evaluator
from fewstep.metrics import EvalProtocol


@dataclass(frozen=True)
class Euler(Step):
    """Move the share (t − s)/t of the way to the predicted image."""

    def weight(self, t, s):
        return (t - s) / t

    def __call__(self, context, x_t, t, s):
        x0 = context.predict(x_t, t).x0
        return (x0 if s is None else x_t + self.weight(t, s) * (x0 - x_t)), None


@dataclass(frozen=True)
class WrongEuler(Euler):
    """Move the share 1 − s, whatever t is."""

    def weight(self, t, s):
        return 1 - s


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--samples", type=int, default=2000)
    options = parser.parse_args()
    run = load_run(options.run)
    generator = run.generator
    (steps,) = generator.grid.counts
    protocol = EvalProtocol(options.samples, "classifier")
    evaluator = Evaluator(reference_images(run), protocol)
    rules = [generator.with_sampler(step=step) for step in (generator.step, Euler(), WrongEuler())]
    scores = [evaluator.score(rule, steps=steps) for rule in rules]
    show((options.run, score) for score in scores)


if __name__ == "__main__":
    main()
