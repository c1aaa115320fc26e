"""Are synonyms and misspellings understood? The list synonyms.csv, which no result has changed.

    OMP_NUM_THREADS=1 python benchmarks/synonyms.py RUN@STEPS [RUN@STEPS ...]

Each prompt of the list is drawn `--count` times. It scores the share of these images in which the
caption that it should behave like is found among 100 captions (the measure text-match; chance is
1 %). Beside it is the share for images of the caption itself, from the same noise. The line "all"
of a kind is the mean over its prompts.
"""

import argparse
import csv
from pathlib import Path

import torch

from fewstep import data
from fewstep.download import cache
from fewstep.drawing import generate
from fewstep.loading import load_run
from fewstep.metrics.text_match import CaptionPool, TextMatch, scorer_for

LIST = Path(__file__).with_name("synonyms.csv")


def share(match, generator, steps, prompt, caption, count, seed):
    """The share of images of `prompt` in which `caption` is found."""
    parts = generate(generator, count, steps=steps, seed=seed, prompts=[prompt])
    images = torch.cat([images for _, images in parts])
    return match.rows(images, [caption] * count)[:, 0].mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN@STEPS")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    entries = list(csv.DictReader(LIST.open(newline="")))
    train = data.load("emoji")
    match = TextMatch(scorer_for(train, cache=cache()), CaptionPool([train]))
    print("| run | kind | prompt | caption | prompt's images | caption's images |")
    print("|---|---|---|---|---|---|")
    for address, _, steps in (run.rpartition("@") for run in options.runs):
        generator, name = load_run(address).generator, Path(address).name
        shares = {}
        for entry in entries:
            kind, prompt, caption = entry["kind"], entry["prompt"], entry["caption"]
            pair = [
                share(match, generator, int(steps), text, caption, options.count, options.seed)
                for text in (prompt, caption)
            ]
            shares.setdefault(kind, []).append(pair)
            print(f"| {name} | {kind} | {prompt} | {caption} | {pair[0]:.0%} | {pair[1]:.0%} |")
        for kind, pairs in shares.items():
            means = torch.tensor(pairs).mean(0).tolist()
            print(f"| {name} | {kind} | all {len(pairs)} | | {means[0]:.1%} | {means[1]:.1%} |")


if __name__ == "__main__":
    main()
