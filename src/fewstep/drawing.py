"""Generate images by row number: the image of a row does not depend on the batch size."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, TypedDict

import torch
from torch import Tensor

from fewstep.condition import NO_LABEL, Condition, Text
from fewstep.errors import InputError
from fewstep.finite import check_finite
from fewstep.generator import Generator
from fewstep.images import to_uint8
from fewstep.noise import noise_from_seeds
from fewstep.sample_spec import SampleSpec


class Turns(TypedDict):
    """Classes and prompts that rows have in turn, as arguments of the functions below."""

    labels: Sequence[int] | None
    prompts: Sequence[str] | None


@torch.inference_mode()
def generate(
    generator: Generator,
    count: int,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 500,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[tuple[range, Tensor]]:
    """Yield `count` images as uint8 (b, *shape) on the CPU, batch by batch with their row numbers.

    Row i starts from noise seed `seed·2³² + i` and has the class `labels[i % len(labels)]` and the
    prompt `prompts[i % len(prompts)]`; see `conditions` for the defaults. With `share` = (k, n),
    only every n-th batch is generated, from batch k.

    Raises: InputError for a count below 1, a seed out of range, or images with NaN or infinite
    values.
    """
    settings: Any = {"seed": seed, "batch": batch, "labels": labels, "prompts": prompts}
    starts = start_noise(generator, count, **settings, share=share)
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
    prompts: Sequence[str] | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """Like `generate`, but yield the generator's own images, about [-1, 1], on its device."""
    settings: Any = {"seed": seed, "batch": batch, "labels": labels, "prompts": prompts}
    starts = start_noise(generator, count, **settings)
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
    prompts: Sequence[str] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Start]:
    """Yield (row numbers, noise (b, *shape), conditions) for each batch; see `generate`."""
    if count < 1 or seed < 0:
        raise InputError(
            f"cannot generate {count} images from seed {seed}: give a count of at least 1 and a "
            "seed of at least 0"
        )
    for first in range(share[0] * batch, count, share[1] * batch):
        rows = range(first, min(first + batch, count))
        device = generator.device
        noise = noise_from_seeds(seeds(seed, rows), generator.spec.shape, device=device)
        cond = conditions(generator.spec, rows, device, labels=labels, prompts=prompts)
        yield rows, noise, cond


def seeds(seed: int, rows: range, *, first: int = 0) -> list[int]:
    """Noise seed of each row: `first + seed·2³² + row`.

    Raises: InputError for a seed outside 0 … 2³⁰ − 1; larger ones are reserved for recording.
    """
    if not 0 <= seed < 1 << 30:
        raise InputError(f"seed {seed} is out of range; choose one from 0 to {(1 << 30) - 1}")
    return [first + (seed << 32) + row for row in rows]


def conditions(
    spec: SampleSpec,
    rows: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
) -> Condition | None:
    """The condition of each row: the class `labels[row % len(labels)]`, and a prompt likewise.

    By default the classes take turns; if there is text, `spec.prompts` do, without a class. None if
    the generator has neither classes nor text.

    Raises: InputError for prompts and a generator without text.
    """
    prompts = prompts_in_turn(spec, prompts)
    if spec.classes:
        labels = labels or ((NO_LABEL,) if prompts else range(spec.classes))
    label = torch.tensor([labels[row % len(labels)] for row in rows]) if labels else None
    text = None
    if spec.text is not None:
        used = [prompts[row % len(prompts)] for row in rows]
        numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(used))}
        encoded = spec.text.encode([*numbers])
        index = torch.tensor([numbers[prompt] for prompt in used])
        text = Text(encoded.tokens[index], encoded.mask[index])
    if label is None and text is None:
        return None
    return Condition(label, text=text).to(device)


def prompts_in_turn(spec: SampleSpec, prompts: Sequence[str] | None = None) -> Sequence[str]:
    """The prompts that rows have in turn: by default `spec.prompts`, or no prompt; () without text.

    Raises: InputError for prompts and a generator without text.
    """
    if spec.text is not None:
        return prompts or spec.prompts or ("",)
    if prompts:
        raise InputError("this generator takes no text: leave out the prompts")
    return ()
