"""Do pictures of emojis show what was asked? The table, grids and plot of text-to-image runs.

    OMP_NUM_THREADS=1 python benchmarks/emoji.py TEACHER@16 STUDENT@1,2,4 --out DIR
    OMP_NUM_THREADS=1 python benchmarks/emoji.py TEACHER@16 --guidance 1,1.5,2,3,5 --out DIR

Each RUN is a run folder, then @ and its numbers of sampling steps. The first is the one that the
others are compared with. DIR gets

- table.md: Fréchet distance and text match for captions of the training set ("captions"), for
  those among them with a skin tone ("compositions"), and for the compositions that the training
  set lacks ("held out"); the same of real images;
- nearest-*.png: samples of both kinds beside the training images that are most like them;
- guidance.png: with --guidance, the weight against distance and text match;
- scores.json: all numbers.

The scorer of text match has seen the training images, but no image of a held-out composition.
"among persons" is harder than text match: the other 99 captions are those of persons with the same
skin tone. Runs that were not trained for guidance are lines in the plot.
"""

import argparse
import json
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from fewstep import data, metrics
from fewstep.abilities import why_not_guidable, with_guidance
from fewstep.download import cache
from fewstep.drawing import generate
from fewstep.evaluation import Evaluator, count_evaluations
from fewstep.loading import load_run
from fewstep.metrics.text_match import CaptionPool, TextMatch, scorer_for
from fewstep.sample_spec import evenly_spread


@dataclass(frozen=True)
class Requests:
    """Prompts with the classes of their images."""

    prompts: list[str]
    labels: list[int]
    images: torch.Tensor
    """The real images with these captions."""


def requests(images, rows):
    rows = rows.tolist()
    prompts = [images.captions[i][0] for i in rows]
    return Requests(prompts, images.labels[rows].tolist(), images.images[rows])


def persons(images):
    """The images whose base has skin tones, those of two persons excepted."""
    single = [bool(tone) and "," not in tone for tone in images.columns["tone"]]
    toned = {base for base, tone in zip(images.columns["base"], single, strict=True) if tone}
    rows = [i for i, base in enumerate(images.columns["base"]) if base in toned]
    columns = {key: tuple(values[i] for i in rows) for key, values in images.columns.items()}
    captions = tuple(images.captions[i] for i in rows)
    return replace(
        images,
        images=images.images[rows],
        labels=images.labels[rows],
        columns=columns,
        captions=captions,
    )


class Bench:
    """The sets, the scorer and the evaluator that measure all runs."""

    def __init__(self, samples, repeats, seed):
        self.train, self.test = data.load("emoji"), data.load("emoji", split="test")
        self.samples, self.repeats, self.seed = samples, repeats, seed
        self.evaluator = Evaluator(self.train, metrics.protocol("quick"))
        sets, scorer = (self.train, self.test), scorer_for(self.train, cache=cache())
        self.match = TextMatch(scorer, CaptionPool(sets))
        self.among_persons = TextMatch(scorer, CaptionPool(map(persons, sets)))
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        bases = set(self.test.columns["base"])
        tone, base = self.train.columns["tone"], self.train.columns["base"]
        composed = [
            i for i in order.tolist() if tone[i] and "," not in tone[i] and base[i] in bases
        ]
        self.captions = requests(self.train, order)
        self.compositions = requests(self.train, torch.tensor(composed))
        self.held_out = requests(self.test, torch.arange(len(self.test)))

    def images(self, generator, steps, wanted, count):
        settings = {"steps": steps, "seed": self.seed, "prompts": wanted.prompts}
        labels = wanted.labels if generator.spec.classes else None
        parts = generate(generator, count, labels=labels, **settings)
        return torch.cat([images for _, images in parts])

    def score(self, images, wanted, name):
        """Share, interval and tones of images with these prompts in turn."""
        prompts = [wanted.prompts[i % len(wanted.prompts)] for i in range(len(images))]
        row = {}
        values = self.match.values(self.match.rows(images, prompts))
        if name != "captions":
            (hard, *_) = self.among_persons.values(self.among_persons.rows(images, prompts))
            row[f"{name} among_persons"] = (hard.value, hard.low, hard.high)
        return row | {f"{name} {v.measure.key}": (v.value, v.low, v.high) for v in values}

    def distance(self, images):
        accumulator = metrics.ScoreAccumulator(self.evaluator.reference, len(images))
        accumulator.update(images)
        measures = accumulator.measures()
        return {"frechet": (measures.frechet, measures.frechet_low, measures.frechet_high)}

    def row(self, name, images_of):
        """All scores; `images_of` returns images for requests and a count."""
        images = images_of(self.captions, self.samples)
        row = {
            "name": name,
            **self.distance(images),
            **self.score(images, self.captions, "captions"),
        }
        for kind, wanted in (("compositions", self.compositions), ("held out", self.held_out)):
            images = images_of(wanted, self.repeats * len(self.held_out.prompts))
            row |= self.score(images, wanted, kind)
        print(json.dumps(row), flush=True)
        return row

    def run_row(self, name, generator, steps):
        row = self.row(name, lambda wanted, count: self.images(generator, steps, wanted, count))
        return row | {"evaluations": count_evaluations(generator, steps)}

    def real_row(self):
        """Real images: those of the prompts, each once."""
        return self.row("real images", lambda wanted, count: wanted.images[:count])

    def nearest(self, generator, steps, wanted, path, *, count=16):
        """Write samples in a row, below them the most similar training images by the features of
        the classifier and by pixels, with their captions."""
        rows = evenly_spread(range(len(wanted.prompts)), count)
        prompts, labels = [wanted.prompts[i] for i in rows], [wanted.labels[i] for i in rows]
        images = self.images(generator, steps, Requests(prompts, labels, wanted.images), count)
        features = self.evaluator.extractor(images)
        by_features = self.evaluator.reference.nearest(features).rows[:, 0].tolist()
        pixels = self.train.images.flatten(1).float()
        by_pixels = torch.cdist(images.flatten(1).float(), pixels).argmin(1).tolist()
        caption = [each[0] for each in self.train.captions]
        rows = [
            [(image, prompts[i]) for i, image in enumerate(images)],
            [(self.train.images[i], caption[i]) for i in by_features],
            [(self.train.images[i], caption[i]) for i in by_pixels],
        ]
        draw_grid(rows, path)


def draw_grid(rows, path, *, scale=3):
    """A grid of images (3, h, w), each with a text of up to three lines below it."""
    size = scale * rows[0][0][0].shape[-1]
    width, height = size + 34, size + 44
    grid = Image.new("RGB", (width * len(rows[0]), height * len(rows)), "white")
    draw = ImageDraw.Draw(grid)
    for y, row in enumerate(rows):
        for x, (image, text) in enumerate(row):
            tile = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), 0)
            grid.paste(tile, (x * width + 17, y * height))
            lines = "\n".join(textwrap.wrap(text, 21)[:3])
            draw.multiline_text((x * width + 2, y * height + size + 2), lines, "black", spacing=1)
    grid.save(path)


def table(rows):
    """Markdown; the last columns compare with the first run, and held out with captions."""
    kinds = ("captions", "compositions", "held out")
    head = ["", "evaluations", "Fréchet distance", *(f"text match, {kind}" for kind in kinds)]
    head += [f"among persons, {kind}" for kind in kinds[1:]]
    head += [f"skin tone, {kind}" for kind in kinds]
    head += ["distance / first run's", "text match / first run's", "held out / compositions"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    first = next(row for row in rows if "evaluations" in row)
    for row in rows:
        cells = [row["name"], str(row.get("evaluations", "")), distance_text(row["frechet"])]
        for key in ("text_match", "among_persons", "tone_match"):
            values = [row.get(f"{kind} {key}") for kind in kinds]
            cells += [share_text(value) for value in values if value]
        match, composed = row["captions text_match"][0], row["compositions text_match"][0]
        is_run = "evaluations" in row
        cells.append(f"{row['frechet'][0] / first['frechet'][0]:.2f}" if is_run else "")
        cells.append(f"{match / first['captions text_match'][0]:.2f}" if is_run else "")
        cells.append(f"{row['held out text_match'][0] / composed:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def distance_text(value):
    middle, _, high = value
    return f"{middle:.2f}" + (f" ± {high - middle:.2f}" if high is not None else "")


def share_text(value):
    return f"{value[0]:.1%} ({value[1]:.1%} – {value[2]:.1%})"


def plot(curves, path):
    """Guidance weight against Fréchet distance, and text match of captions and held out."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    panels = (
        (axes[0], "frechet", "", "-"),
        (axes[1], "captions text_match", ", captions", "-"),
        (axes[1], "held out text_match", ", held out", ":"),
    )
    for number, (name, rows) in enumerate(curves.items()):
        evaluations = f"{rows[-1]['evaluations']} evaluation" + "s" * (rows[-1]["evaluations"] > 1)
        for axis, key, label, style in panels:
            settings = {
                "label": f"{name}{label} ({evaluations})",
                "linestyle": style,
                "color": f"C{number}",
            }
            values = [row[key][0] for row in rows]
            if len(rows) > 1:
                axis.plot([row["guidance"] for row in rows], values, marker="o", **settings)
            else:
                axis.axhline(values[0], **settings)
    for axis, text in zip(axes, ("Fréchet distance", "text match"), strict=True):
        axis.set(xlabel="guidance weight", ylabel=text)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize="x-small", loc="lower right")
    axes[1].set_ylim(0, 1.02)
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN@STEPS")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument(
        "--repeats", type=int, default=5, help="images of each held-out composition"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--guidance", help="weights, separated by commas, for all runs that allow it"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.samples, options.repeats, options.seed)
    rows, curves = [bench.real_row()], {}
    for address, _, counts in (run.rpartition("@") for run in options.runs):
        run = load_run(address)
        recipe = run.recipe and run.recipe.table()
        for steps in map(int, counts.split(",")):
            name = f"{Path(address).name}, {steps} {'step' if steps == 1 else 'steps'}"
            weights = [1.0]
            if options.guidance and not why_not_guidable(run.generator, recipe):
                weights = [float(weight) for weight in options.guidance.split(",")]
            for weight in weights:
                generator = with_guidance(run.generator, weight, recipe)
                row = bench.run_row(name, generator, steps) | {"guidance": weight}
                curves.setdefault(name, []).append(row)
            rows.append(next((r for r in curves[name] if r["guidance"] == 1), curves[name][0]))
            for kind, wanted in (("captions", bench.captions), ("held-out", bench.held_out)):
                file = f"nearest-{Path(address).name}-{steps}-{kind}.png"
                bench.nearest(run.generator, steps, wanted, options.out / file)
    (options.out / "table.md").write_text(table(rows))
    (options.out / "scores.json").write_text(
        json.dumps({"rows": rows, "guidance": curves}, indent=1)
    )
    if options.guidance:
        plot(curves, options.out / "guidance.png")
    print(table(rows))


if __name__ == "__main__":
    main()
