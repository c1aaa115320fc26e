"""A generator into scores, each with all that it depends on beside it."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import metrics
from fewstep.condition import Condition
from fewstep.data import ImageSet, home
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.guidance import Guided
from fewstep.images import to_uint8
from fewstep.process import Flow
from fewstep.recording import class_labels, seeds
from fewstep.sampling import describe_step, noise_from_seeds


@dataclass(frozen=True)
class Score:
    """One generator at one number of steps."""

    steps: int
    sampler: str
    evaluations: int
    """Calls of the network for one image; guidance counts twice."""
    samples: int
    extractor: str
    extractor_hash: str
    reference: str
    seed: int
    frechet: float
    accuracy: float | None
    """Share of class-conditional samples that the classifier puts in their class."""
    seconds_per_image: float
    """Batch of 1, median."""

    def table(self) -> dict[str, Any]:
        """As `fewstep evaluate --json` prints it."""
        return asdict(self)


class Yardstick:
    """A reference set in an extractor's features: made once, then any generator against it."""

    def __init__(self, images: ImageSet, extractor: str) -> None:
        self.images = images
        self.extractor = metrics.make_extractor(
            extractor,
            images=images.images,
            labels=images.labels,
            fingerprint=images.fingerprint,
            cache=home() / "cache",
        )
        self.moments = metrics.moments(self.extractor, images.images.split(1024))
        self.reference = f"{images.name} ({len(images)}, {images.fingerprint[:12]})"

    def score(
        self, generator: Generator, *, steps: int, samples: int, seed: int = 0, batch: int = 500
    ) -> Score:
        """The generator's score from `samples` images, its classes in turn."""
        if samples < 2:
            raise InputError(f"a score takes at least 2 samples, not {samples}")
        if generator.subject.shape != self.images.shape:
            raise InputError(
                f"the generator makes {generator.subject.shape}, the reference set "
                f"{self.images.name} holds {self.images.shape}"
            )
        moments = metrics.Moments(self.moments.mean.numel())
        right = 0
        classes = generator.subject.classes
        classifier = self.extractor if isinstance(self.extractor, metrics.Classifier) else None
        for rows, images in generate(generator, samples, steps=steps, seed=seed, batch=batch):
            moments.update(self.extractor(images))
            if classifier and classes:
                labels = torch.tensor([row % classes for row in rows])
                right += int((classifier.classify(images) == labels).sum())
        return Score(
            steps=steps,
            sampler=describe_step(generator.step)["name"],
            evaluations=evaluations(generator, steps),
            samples=samples,
            extractor=self.extractor.name,
            extractor_hash=self.extractor.hash,
            reference=self.reference,
            seed=seed,
            frechet=metrics.frechet_distance(moments, self.moments),
            accuracy=right / samples if classifier and classes else None,
            seconds_per_image=seconds_per_image(generator, steps),
        )


@torch.inference_mode()
def generate(
    generator: Generator,
    count: int,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 500,
    labels: Sequence[int] | None = None,
) -> Iterator[tuple[range, Tensor]]:
    """`count` images as uint8, batch by batch with their row numbers.

    Row i starts from noise seed `seed·2³² + i` and shows `labels[i % len(labels)]`, by default each
    class in turn: the same images for any batch size.
    """
    for rows, noise, cond in _starts(generator, count, seed=seed, batch=batch, labels=labels):
        images = generator(noise, steps=steps, cond=cond, seed=seeds(seed, rows))
        yield rows, to_uint8(images).cpu()


def _starts(
    generator: Generator,
    count: int,
    *,
    seed: int,
    batch: int,
    labels: Sequence[int] | None = None,
) -> Iterator[tuple[range, Tensor, Condition | None]]:
    """Row numbers, noise and classes, batch by batch."""
    if count < 1 or seed < 0:
        raise InputError(f"cannot draw {count} images from seed {seed}: at least 1, from 0 up")
    for first in range(0, count, batch):
        rows = range(first, min(first + batch, count))
        device = generator.device
        noise = noise_from_seeds(seeds(seed, rows), generator.subject.shape, device=device)
        yield rows, noise, class_labels(generator.subject.classes, rows, device, labels=labels)


@torch.inference_mode()
def straightness(
    generator: Generator, *, samples: int = 500, steps: int = 32, seed: int = 0
) -> float:
    """How far the paths from noise to image are from straight lines at even speed: 0 for lines.

        S = ∫ E|velocity − (x_1 − x_0)|² dt / E|x_1 − x_0|²

    The integral is Liu et al.'s straightness (2022, arXiv:2209.03003, section 2.2), here a share of
    the lines' own length. It is taken under `Flow`, whatever the network's clock, by `steps` Euler
    steps, whose mean velocity is x_1 − x_0.
    """
    flow = Generator(generator.denoiser.under(Flow()), generator.subject)
    times = flow.grid(steps, flow.denoiser).tolist()
    rates = torch.tensor([*times, 0.0], dtype=torch.float64).diff().tolist()
    bend, chord = 0.0, 0.0
    for _, noise, cond in _starts(flow, samples, seed=seed, batch=500):
        path = (x.double() for x in flow.path(noise, steps=steps, cond=cond))
        before = next(path)
        mean, square = torch.zeros_like(before), torch.zeros_like(before)
        for x, rate in zip(path, rates, strict=True):
            velocity = (x - before) / rate
            mean, square, before = mean + velocity / steps, square + velocity**2 / steps, x
        bend += float((square - mean.square()).sum())
        chord += float(mean.square().sum())
    return bend / chord


@torch.inference_mode()
def evaluations(generator: Generator, steps: int) -> int:
    """How often one image asks the network, counted on one image."""
    backbone = generator.denoiser.backbone
    each = 1
    if isinstance(backbone, Guided):
        backbone, each = backbone.backbone, 2
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += each

    handle = backbone.register_forward_pre_hook(count)
    try:
        _one_image(generator, steps)
    finally:
        handle.remove()
    return calls[0]


@torch.inference_mode()
def seconds_per_image(generator: Generator, steps: int, *, repeats: int = 9) -> float:
    """The median time of one image at batch 1, after a warm-up."""
    _one_image(generator, steps)
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        _one_image(generator, steps)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _one_image(generator: Generator, steps: int) -> None:
    for _ in generate(generator, 1, steps=steps):
        pass


def parameters(module: nn.Module) -> int:
    """How many numbers it has learnt."""
    return sum(p.numel() for p in module.parameters())
