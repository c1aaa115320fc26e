"""Bits per dimension of real images under a teacher, with everything that they depend on."""

import math
from collections.abc import Generator as Pull
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from fewstep import __version__
from fewstep.condition import Condition
from fewstep.data import ImageSet
from fewstep.drawing import conditions
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.images import from_uint8
from fewstep.likelihood import TOLERANCE, flow_ratios, log_likelihood, rademacher_probes
from fewstep.noise import RowNoise
from fewstep.run_folder import Run
from fewstep.runs import network_hash
from fewstep.sample_spec import SampleSpec

LEVEL_BITS = math.log2(127.5)
"""Bits per dimension of the width 1/127.5 that a level of an 8-bit image has in [-1, 1]."""
EXACT_DIMENSIONS = 16
"""Largest number of dimensions with an exact divergence by default."""


@dataclass(frozen=True)
class LikelihoodSettings:
    """How a likelihood is measured."""

    samples: int = 200
    """Number of real images, the first ones in a random order that is always the same."""
    probes: int | None = None
    """Probes of Hutchinson's estimate of the divergence; 0 for the exact divergence. None is 0 for
    up to 16 dimensions, else 1."""
    tolerance: float = TOLERANCE
    """Error of a step of the solver; see `likelihood.log_likelihood`."""
    seed: int = 0
    """Seed of the dequantisation and the probes."""
    batch: int = 50
    """Images that are solved together, with common steps."""


@dataclass(frozen=True)
class LikelihoodScore:
    """Bits per dimension of real images, and everything that they depend on."""

    bits: float
    """Mean over the images; lower is better."""
    low: float
    """Lower end of the 95 % interval of the mean: other images, and other noise."""
    high: float
    evaluations: int
    """Mean number of network evaluations of an image, each with one derivative for every probe, or
    every dimension if the divergence is exact."""
    samples: int
    """Number of real images."""
    split: str
    """Split of the set; "all" for a set without the name of one."""
    reference: str
    """Name, size and fingerprint of the set of real images."""
    condition: str
    """What the density is conditional on: "class", "caption", "class and caption" or "none"."""
    probes: int
    """Probes of the divergence; 0 if it is exact."""
    tolerance: float
    end_ratio: float
    """sigma/alpha at the end of the flow."""
    seed: int
    network: str
    """The first 16 digits of `runs.network_hash`."""

    @property
    def protocol(self) -> tuple[object, ...]:
        """The settings that must be equal for two scores to be comparable.

        The estimate of the divergence is not among them: it has no bias.
        """
        return self.samples, self.split, self.reference, self.condition, self.end_ratio

    @property
    def divergence(self) -> str:
        """How the divergence is computed, in words."""
        if self.probes == 0:
            return "exact divergence"
        return f"divergence by {self.probes} probe{'s' * (self.probes > 1)}"

    def table(self) -> dict[str, Any]:
        """The score as a flat table, as `fewstep evaluate --likelihood --json` prints it."""
        return asdict(self)


def dequantize(images: UInt8[Tensor, "b *shape"], noise: RowNoise) -> Float32[Tensor, "b *shape"]:
    """8-bit images in [-1, 1] with uniform noise of the width of a level.

    Level k becomes (k + u − ½)/127.5 − 1 with u in [0, 1): the middle of its interval is the value
    at which networks are trained, and all 256 intervals together are [-1 − 1/255, 1 + 1/255).
    """
    normal = noise.like(torch.empty(images.shape, dtype=torch.float64))
    return from_uint8(images.double() + torch.special.ndtr(normal) - 0.5)


def iter_likelihood(
    generator: Generator, images: ImageSet, settings: LikelihoodSettings, *, split: str
) -> Pull[int, None, LikelihoodScore]:
    """Measure the bits per dimension of `images`, a `split` of a set.

        bits = E[−log2 p(x0 | condition)]/d + log2(127.5)

    x0 is an image with uniform noise (Theis et al. 2016, arXiv:1511.01844), so that the result is
    at least −log2 of the probability of the 8-bit image (Jensen). The condition has the image's own
    class and its first caption. The numbers of an image depend on its number in the set, the seed,
    and, within the tolerance, on the rest of its batch. Yields the number of images done so far.

    Raises: InputError for images of another shape or other classes than the generator's, without
    the conditions that it needs, and as `likelihood.log_likelihood`.
    """
    _check(generator, images)
    size = math.prod(images.shape)
    probes = settings.probes
    if probes is None:
        probes = 0 if size <= EXACT_DIMENSIONS else 1
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    rows = order[: settings.samples]
    bits: list[Tensor] = []
    evaluations = 0
    for first in range(0, len(rows), settings.batch):
        batch = rows[first : first + settings.batch]
        noise = RowNoise([(settings.seed << 32) + row for row in batch])
        x0 = dequantize(images.images[batch], noise).to(generator.device)
        result = log_likelihood(
            generator.denoiser,
            x0,
            cond=_conditions(generator.spec, images, batch, generator.device),
            probes=rademacher_probes(noise, probes, x0) if probes else None,
            tolerance=settings.tolerance,
        )
        bits.append(LEVEL_BITS - result.nats / size / math.log(2))
        evaluations += result.evaluations * len(batch)
        yield first + len(batch)
    values = torch.cat(bits)
    mean, spread = values.mean().item(), 1.96 * (values.std() / math.sqrt(len(values))).item()
    return LikelihoodScore(
        bits=mean,
        low=mean - spread,
        high=mean + spread,
        evaluations=round(evaluations / len(values)),
        samples=len(values),
        split=split,
        reference=f"{images.name} ({len(images)}, {images.fingerprint[:12]})",
        condition=_condition_name(generator.spec),
        probes=probes,
        tolerance=settings.tolerance,
        end_ratio=flow_ratios(generator.denoiser)[0].item(),
        seed=settings.seed,
        network=network_hash(generator)[:16],
    )


def _check(generator: Generator, images: ImageSet) -> None:
    """Raise InputError if the images are not such as the generator was trained on."""
    spec = generator.spec
    if generator.image_shape != images.shape:
        raise InputError(
            f"the generator's images have shape {generator.image_shape}, but those of "
            f"{images.name} have {images.shape}"
        )
    if spec.text is not None and not any(images.captions):
        raise InputError(
            f"the network reads prompts, and {images.name} has no captions: name a set with "
            "captions by --data"
        )
    if not spec.classes:
        return
    difference = spec.class_difference(SampleSpec(images.shape, images.classes, images.class_names))
    if images.classes != spec.classes or difference:
        text = difference or f"there are {spec.classes} and {images.classes}"
        raise InputError(
            "the likelihood is that of an image given its class, and the classes of the network "
            f"and of {images.name} differ ({text}): name a set of the same classes by --data"
        )


def _conditions(
    spec: SampleSpec, images: ImageSet, rows: Sequence[int], device: torch.device
) -> Condition | None:
    """The own classes and first captions of the images with the numbers `rows`."""
    labels = prompts = None
    if spec.classes:
        assert images.labels is not None
        labels = images.labels[list(rows)].tolist()
    if spec.text is not None:
        prompts = [images.captions[row][0] if images.captions[row] else "" for row in rows]
    return conditions(spec, range(len(rows)), device, labels=labels, prompts=prompts)


def _condition_name(spec: SampleSpec) -> str:
    names = ["class"] * (spec.classes > 0) + ["caption"] * (spec.text is not None)
    return " and ".join(names) or "none"


def likelihood_from(table: Mapping[str, Any]) -> LikelihoodScore:
    """The score that `LikelihoodScore.table` returned as `table`.

    Raises: InputError for any other table.
    """
    try:
        return LikelihoodScore(**table)
    except TypeError as error:
        raise InputError(f"this is no likelihood of fewstep {__version__}: {error}") from error


def stored_likelihoods(address: str | Path, generator: Generator) -> list[LikelihoodScore]:
    """The likelihoods of this network in a run folder, the latest of each protocol last."""
    if not Path(address).is_dir():
        return []
    lines = [line["likelihood"] for line in Run(address).scores() if "likelihood" in line]
    network = network_hash(generator)[:16]
    scores = [likelihood_from(line) for line in lines]
    return [score for score in scores if score.network == network]


def append_likelihood(address: str | Path, score: LikelihoodScore) -> None:
    """Append the score to scores.jsonl if `address` is a run folder that is not read-only."""
    if Path(address).is_dir():
        with suppress(OSError):
            Run(address).append_score({"version": __version__, "likelihood": score.table()})
