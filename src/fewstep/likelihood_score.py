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
from fewstep.formatting import quantity
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
    """Split of the set, such as "test"."""
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
    def settings_text(self) -> str:
        """Everything that the value depends on, in one sentence."""
        condition = "" if self.condition == "none" else f" given the {self.condition}"
        divergence = f"divergence by {quantity(self.probes, 'probe')}"
        return (
            f"{self.samples:,} images of the split {self.split} of {self.reference}{condition}, "
            f"uniform dequantisation; {divergence if self.probes else 'exact divergence'}, "
            f"{quantity(self.evaluations, 'evaluation')}, tolerance {self.tolerance:g}, flow from "
            f"sigma/alpha {self.end_ratio:.3g}, seed {self.seed}; network {self.network}"
        )

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
    size, probes = math.prod(images.shape), _count_probes(images, settings)
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
        reference=_reference(images),
        condition=_condition_name(generator.spec),
        probes=probes,
        tolerance=settings.tolerance,
        end_ratio=flow_ratios(generator.denoiser)[0].item(),
        seed=settings.seed,
        network=network_hash(generator)[:16],
    )


def _count_probes(images: ImageSet, settings: LikelihoodSettings) -> int:
    if settings.probes is not None:
        return settings.probes
    return 0 if math.prod(images.shape) <= EXACT_DIMENSIONS else 1


def _reference(images: ImageSet) -> str:
    return f"{images.name} ({len(images)}, {images.fingerprint[:12]})"


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
    """The likelihoods of this network in a run folder by this version, oldest first."""
    if not Path(address).is_dir():
        return []
    lines = [
        line["likelihood"]
        for line in Run(address).scores()
        if "likelihood" in line and line.get("version") == __version__
    ]
    network = network_hash(generator)[:16] if lines else ""
    return [score for score in map(likelihood_from, lines) if score.network == network]


def cached_likelihood(
    address: str | Path,
    generator: Generator,
    images: ImageSet,
    settings: LikelihoodSettings,
    *,
    split: str,
) -> LikelihoodScore | None:
    """The likelihood in a run folder of the same network, images and settings, if there is one."""
    key = (
        min(settings.samples, len(images)),
        split,
        _reference(images),
        _count_probes(images, settings),
        settings.tolerance,
        settings.seed,
    )
    for score in reversed(stored_likelihoods(address, generator)):
        own = (score.samples, score.split, score.reference)
        if (*own, score.probes, score.tolerance, score.seed) == key:
            return score
    return None


def append_likelihood(address: str | Path, score: LikelihoodScore) -> None:
    """Append the score to scores.jsonl if `address` is a run folder that is not read-only."""
    if Path(address).is_dir():
        with suppress(OSError):
            Run(address).append_score({"version": __version__, "likelihood": score.table()})
