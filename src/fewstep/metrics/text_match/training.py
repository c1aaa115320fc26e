"""Train the network of `text-match` on the captioned images that samples are compared with.

As the classifier, it is trained once for each set and saved: only scores from the same weights are
comparable.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from fewstep.errors import InputError
from fewstep.metrics.extractors.weights import weights_digest
from fewstep.metrics.text_match.captions import CaptionedImages, bases
from fewstep.metrics.text_match.network import TextImageNetwork
from fewstep.tensor_file import NotOurs, read_tensor_file, write_tensor_file
from fewstep.text.captions import CaptionTable
from fewstep.text.learned import LearnedText

RECIPE = 1  # increase it when the training changes: saved networks are then trained again
BATCH = 256
LEARNING_RATE = 2e-3
IMAGES = 150_000
"""Images of the training, each with one of its captions; about a minute of one core."""
MAX_SCALE = 50.0
"""Largest factor of the cosines in the loss."""


class Scorer:
    """A trained network with its encoder of captions. `hash` identifies both."""

    def __init__(self, network: TextImageNetwork, encoder: LearnedText) -> None:
        self.network = network.eval().requires_grad_(False)
        self.encoder = encoder
        self.hash = weights_digest(network, f"{RECIPE} {network.shape} {encoder}")


def scorer_for(images: CaptionedImages, *, cache: Path | None) -> Scorer:
    """The scorer of these images: read from `cache`, or trained and saved.

    A saved file that is damaged, or from another version of the training, is replaced.
    """
    if cache is None:
        return train_scorer(images)
    path, encoder = scorer_file(images, cache), _encoder(images)
    description = {"kind": "text-match", "recipe": RECIPE, "fingerprint": images.fingerprint}
    saved = _read(path, images, encoder, description)
    if saved is not None:
        return saved
    scorer = train_scorer(images)
    # another process may have saved one meanwhile: use it, because its scores have its hash
    saved = _read(path, images, encoder, description)
    if saved is not None:
        return saved
    with suppress(OSError):  # the cache is optional
        write_tensor_file(path, scorer.network.state_dict(), description | {"hash": scorer.hash})
    return scorer


def scorer_file(images: CaptionedImages, cache: Path) -> Path:
    """Path of the saved scorer of a set."""
    content = json.dumps([RECIPE, images.fingerprint, bases(images)])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    return cache / f"text-match-{key}.safetensors"


def train_scorer(images: CaptionedImages, *, seed: int = 0, count: int = IMAGES) -> Scorer:
    """Train on the CPU, in one thread, with `count` images, shifted, scaled, turned and with noise.

    On one machine, equal input and seed give an equal hash.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(images, seed, count)
    finally:
        torch.set_num_threads(threads)


def _train(images: CaptionedImages, seed: int, count: int) -> Scorer:
    encoder = _encoder(images)
    generator = torch.Generator().manual_seed(seed)
    network = _make_network(images, encoder)
    network.draw(generator)
    steps = max(1, count // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.2
    )
    table = CaptionTable(encoder, images.captions)
    rows = _order(images, generator)
    for _ in range(steps):
        batch = torch.tensor([next(rows) for _ in range(BATCH)])
        offset = torch.rand(BATCH, generator=generator) * table.counts[batch]
        captions = table.numbers[table.starts[batch] + offset.long()]
        pictures = augment(images.images[batch].float(), generator)
        loss = contrastive_loss(
            network.image_tower(pictures),
            network.text_tower(table.texts.tokens[captions], table.texts.mask[captions]),
            (batch[:, None] == batch) | (captions[:, None] == captions),
            network.log_scale.exp().clamp(max=MAX_SCALE),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Scorer(network, encoder)


def contrastive_loss(
    images: Float[Tensor, "b d"],
    captions: Float[Tensor, "b d"],
    same: Bool[Tensor, "b b"],
    scale: Tensor,
) -> Tensor:
    """Mean cross-entropy of finding the caption of an image, and the image of a caption, in the
    batch (arXiv:2103.00020, figure 3).

    Rows i and j with `same[i, j]` are not rivals: they are one image, or have one caption.
    """
    target = torch.arange(len(images))
    rivals = same & ~torch.eye(len(images), dtype=torch.bool)
    logits = (scale * images @ captions.T).masked_fill(rivals, -torch.inf)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def augment(images: Float[Tensor, "n c h w"], generator: torch.Generator) -> Tensor:
    """Shift, scale and turn images a little, and change their brightness, colours and noise.

    Colours change by less than skin tones differ. There are no flips: captions name directions.
    """
    n, c = images.shape[:2]

    def uniform(*sizes: int) -> Tensor:
        return 2 * torch.rand(*sizes, generator=generator) - 1

    angle, scale = 0.1 * uniform(n), 1 + 0.1 * uniform(n)
    cosine, sine, shift = scale * angle.cos(), scale * angle.sin(), 0.125 * uniform(2, n)
    rows = [cosine, -sine, shift[0], sine, cosine, shift[1]]
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), list(images.shape), False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    images = images * (1 + 0.04 * uniform(n, 1, 1, 1)) + 4 * uniform(n, c, 1, 1)
    strength = 12 * torch.rand(n, 1, 1, 1, generator=generator)
    return images + strength * torch.randn(images.shape, generator=generator)


def _order(images: CaptionedImages, generator: torch.Generator) -> Iterator[int]:
    """The images with captions, again and again, in turn shuffled and with those of one base in a
    row, so that a batch has several tones of each base."""
    numbers = {base: i for i, base in enumerate(dict.fromkeys(bases(images)))}
    group = torch.tensor([numbers[base] for base in bases(images)])
    captioned = torch.tensor([bool(each) for each in images.captions])
    while True:
        for key in (torch.arange(len(group)), group):
            order = torch.randperm(int(key.max()) + 1, generator=generator)[key].argsort(
                stable=True
            )
            yield from order[captioned[order]].tolist()


def _encoder(images: CaptionedImages) -> LearnedText:
    return LearnedText().fit([caption for each in images.captions for caption in each])


def _make_network(images: CaptionedImages, encoder: LearnedText) -> TextImageNetwork:
    _, channels, height, width = images.images.shape
    return TextImageNetwork((channels, height, width), encoder.input.vocabulary)


def _read(
    path: Path, images: CaptionedImages, encoder: LearnedText, description: dict[str, Any]
) -> Scorer | None:
    """The scorer in a file; None if the file differs from what `scorer_for` would write."""
    network = _make_network(images, encoder)
    try:
        tensors, metadata = read_tensor_file(path)
        network.load_state_dict(tensors, assign=True)
    except (InputError, NotOurs, RuntimeError):  # missing, damaged, or other tensors
        return None
    scorer = Scorer(network, encoder)
    return scorer if metadata == description | {"hash": scorer.hash} else None
