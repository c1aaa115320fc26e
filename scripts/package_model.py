"""Write a run's weights, rounded and with their scores, into a model of this package.

    python scripts/package_model.py RUN NAME --dtype int8 [--steps 1,2,4] [--measures text-match]
        [--prompts "smiling face; red heart"] [--large] [--protocol resnet10k] [--samples 2000]

--prompts are the examples that studio and page offer, by default captions of the set. --large
writes into the folder models of the checkout, which is not part of the package. The scores are
those of the rounded weights. RUN may also be a packaged model, such as fewstep:digits, whose
description belongs to an older version.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewstep import recipe, runs
from fewstep.conditions import examples
from fewstep.evaluation import Evaluator
from fewstep.export.precision import round_weights
from fewstep.loading import load_run, reference_images
from fewstep.metrics import protocol
from fewstep.models import CHECKOUT_FOLDER, FOLDER


def without_folders(table: dict[str, Any]) -> dict[str, Any]:
    """The recipe with runs/NAME in place of a run or store elsewhere on this machine."""
    for section, key in (("student", "init"), ("teacher", "load"), ("pairs", "load")):
        address = table.get(section, {}).get(key)
        if address and Path(address).is_absolute():
            table[section] = {**table[section], key: f"runs/{Path(address).name}"}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("name")
    parser.add_argument("--dtype", choices=["f32", "f16", "int8"], default="int8")
    parser.add_argument("--steps", default="1")
    parser.add_argument("--measures", default="")
    parser.add_argument("--prompts", default="")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--protocol", default="quick")
    parser.add_argument("--samples", type=int)
    options = parser.parse_args()
    folder = CHECKOUT_FOLDER if options.large else FOLDER
    assert folder, "--large needs a checkout"
    note, run = runs.describe(options.run), load_run(options.run)
    table = without_folders(recipe.parse(note["recipe"]).table())
    generator, path = (
        round_weights(run.generator, options.dtype),
        folder / f"{options.name}.safetensors",
    )
    images = reference_images(run)
    if generator.spec.text:
        prompts = tuple(part.strip() for part in options.prompts.split(";") if part.strip())
        generator.spec = replace(generator.spec, prompts=prompts or examples(images))
    settings = {"license": "MIT", "dtype": options.dtype}
    runs.save_generator(path, generator, table, note["pins"], **settings)
    measures = tuple(filter(None, options.measures.split(",")))
    chosen = protocol(options.protocol).with_settings(measures=measures, samples=options.samples)
    evaluator = Evaluator(images, chosen)
    stored = runs.load(path)
    steps = [int(count) for count in options.steps.split(",")]
    scores = [evaluator.score(stored, steps=count).table() for count in steps]
    runs.save_generator(path, generator, table, note["pins"], scores=scores, **settings)
    assert runs.weights_hash(runs.load(path)).startswith(scores[0]["weights"])
    for score in scores:
        print(score["steps"], score["frechet"], score["extractor_hash"])
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
