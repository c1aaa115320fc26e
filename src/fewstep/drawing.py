"""Generate images by row number: the image of a row does not depend on the batch size."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.finite import check_finite
from fewstep.generator import Generator
from fewstep.images import to_uint8
from fewstep.noise import noise_from_seeds


@torch.inference_mode()
def generate(
    generator: Generator,
    count: int,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 500,
    labels: Sequence[int] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[range, Tensor]]:
    """Yield `count` images as uint8 (b, *shape) on the CPU, batch by batch with their row numbers.

    Row i starts from noise seed `seed·2³² + i` and has the class `labels[i % len(labels)]`; by
    default the classes take turns. With `share` = (k, n), only every n-th batch is generated, from
    batch k.

    Raises: InputError for a count below 1, a seed out of range, or images with NaN or infinite
    values.
    """
    starts = start_noise(generator, count, seed=seed, batch=batch, labels=labels, share=share)
    for rows, images in _sample(generator, starts, steps, seed):
        yield rows, to_uint8(images).cpu()


@torch.inference_mode()
def generate_values(
    generator: Generator,
    count: int,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 500,
    labels: Sequence[int] | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Like `generate`, but yield the generator's own images, about [-1, 1], on its device."""
    starts = start_noise(generator, count, seed=seed, batch=batch, labels=labels)
    yield from _sample(generator, starts, steps, seed)


Start = tuple[range, Tensor, Condition | None]


def _sample(
    generator: Generator, starts: Iterator[Start], steps: int, seed: int
) -> Iterator[tuple[range, Tensor]]:
    for rows, noise, cond in starts:
        settings: Any = {"steps": steps, "cond": cond, "seed": seeds(seed, rows)}
        repeat = partial(generator.path, noise, **settings)
        yield rows, check_finite(generator, generator(noise, **settings), repeat)


def start_noise(
    generator: Generator,
    count: int,
    *,
    seed: int,
    batch: int,
    labels: Sequence[int] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Start]:
    """Yield (row numbers, starting noise (b, *shape), classes) for each batch; see `generate`."""
    if count < 1 or seed < 0:
        raise InputError(
            f"cannot generate {count} images from seed {seed}: give a count of at least 1 and a "
            "seed of at least 0"
        )
    for first in range(share[0] * batch, count, share[1] * batch):
        rows = range(first, min(first + batch, count))
        device = generator.device
        noise = noise_from_seeds(seeds(seed, rows), generator.spec.shape, device=device)
        yield rows, noise, class_labels(generator.spec.classes, rows, device, labels=labels)


def seeds(seed: int, rows: range, *, first: int = 0) -> list[int]:
    """Noise seed of each row: `first + seed·2³² + row`.

    Raises: InputError for a seed outside 0 … 2³⁰ − 1; larger ones are reserved for recording.
    """
    if not 0 <= seed < 1 << 30:
        raise InputError(f"seed {seed} is out of range; choose one from 0 to {(1 << 30) - 1}")
    return [first + (seed << 32) + row for row in rows]


def class_labels(
    classes: int,
    rows: range,
    device: torch.device | str = "cpu",
    *,
    labels: Sequence[int] | None = None,
) -> Condition | None:
    """The class of each row: `labels[row % len(labels)]`, by default with all classes as labels.

    None if there are no classes.
    """
    labels = labels or range(classes)
    if not labels:
        return None
    return Condition(torch.tensor([labels[row % len(labels)] for row in rows], device=device))
