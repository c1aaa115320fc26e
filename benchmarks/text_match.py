"""What does text match say of real, shuffled and blank images of emojis?

    OMP_NUM_THREADS=1 python benchmarks/text_match.py            # the scorer of every score
    OMP_NUM_THREADS=1 python benchmarks/text_match.py --seed 1   # another one, trained for this
    OMP_NUM_THREADS=1 python benchmarks/text_match.py --damage   # also damaged images

The rows are images with captions: real ones, which it must find; captions of other images, blank
images and noise, which it may find by chance only. Below are the wrong answers for real images.
"""

import argparse
import time

import torch
from degrade import add_noise, blurred

from fewstep import data, metrics
from fewstep.download import cache
from fewstep.evaluation import Evaluator
from fewstep.metrics.text_match import CaptionPool, TextMatch, scorer_for, train_scorer

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--seed", type=int, help="train another scorer with this seed")
parser.add_argument("--damage", action="store_true", help="measure damaged images too")
options = parser.parse_args()

train, test = data.load("emoji"), data.load("emoji", split="test")
start = time.process_time()
if options.seed is None:
    scorer = scorer_for(train, cache=cache())
else:
    scorer = train_scorer(train, seed=options.seed)
print(f"scorer {scorer.hash}, trained or read in {time.process_time() - start:.0f} s of one core")
match = TextMatch(scorer, CaptionPool([train, test]))
generator = torch.Generator().manual_seed(0)


def prompts(images, rows=None):
    rows = range(len(images)) if rows is None else rows.tolist()
    return [images.captions[i][0] for i in rows]


def with_tone(images):
    rows = [i for i, tone in enumerate(images.columns["tone"]) if tone and "," not in tone]
    return torch.tensor(rows)


def other_captions():
    """Captions of other images: those of random images, and those of random bases."""
    yield "captions of random images", torch.randperm(len(train), generator=generator)
    bases = train.columns["base"]
    first = {base: i for i, base in reversed([*enumerate(bases)])}
    rows = torch.tensor([*first.values()])
    yield (
        "captions of random bases",
        rows[torch.randint(len(rows), (len(train),), generator=generator)],
    )


def show(name, images, texts):
    values = match.values(match.rows(images, texts))
    cells = [f"{v.value:.1%} ({v.low:.1%} – {v.high:.1%})" for v in values]
    print(f"| {name} | {len(images):,} | {' | '.join(cells)} |")


print("| images | number | text match | skin tone match |\n|---|---|---|---|")
composed = with_tone(train)
show("real, train", train.images, prompts(train))
show("real, train, with a skin tone", train.images[composed], prompts(train, composed))
show("real, test: compositions that train lacks", test.images, prompts(test))
for name, rows in other_captions():
    show(f"train, {name}", train.images, prompts(train, rows))
show("blank", torch.full_like(train.images, 255), prompts(train))
noise = torch.randint(0, 256, train.images.shape, generator=generator).to(torch.uint8)
show("noise", noise, prompts(train))


def damaged(images):
    """(what is done, images) of each damage."""
    yield "none", images
    for width in (0.75, 1.5, 2.0):
        yield f"blur, {width:g} px", blurred(images, width)
    for level in (16, 32, 64):
        yield f"noise, {level}", add_noise(images, level)
    grey = images.float().mean(1, keepdim=True)
    yield "grey", grey.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    for share in (0.25, 0.5):
        mixed = (1 - share) * images + share * images.roll(1, 0)
        yield f"{share:.0%} of another image", mixed.round().to(torch.uint8)


if options.damage:
    reference = Evaluator(train, metrics.protocol("quick")).reference
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:2000]
    print("| damage | Fréchet distance | text match | skin tone match |\n|---|---|---|---|")
    for name, images in damaged(train.images[rows]):
        accumulator = metrics.ScoreAccumulator(reference, len(images))
        accumulator.update(images)
        values = match.values(match.rows(images, prompts(train, rows)))
        cells = [f"{accumulator.measures().frechet:.2f}", *(f"{v.value:.1%}" for v in values)]
        print(f"| {name} | {' | '.join(cells)} |")

for images in (train, test):
    found = match.rows(images.images, prompts(images))
    vectors = scorer.network.embed_images(images.images)
    for row in (found[:, 0] == 0).nonzero()[:, 0].tolist():
        own = images.captions[row][0]
        texts = [own, *match.pool.rivals(own)]
        cosines = scorer.network.embed_text(scorer.encoder.encode(texts)) @ vectors[row]
        print(
            f"{own} -> {texts[int(cosines.argmax())]}: rank {int((cosines > cosines[0]).sum()) + 1}"
        )
