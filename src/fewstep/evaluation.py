"""Measure generators: score, network evaluations, time per image, parameters, straightness."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from collections.abc import Generator as Pull
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep import metrics
from fewstep.autoguidance import weak_network
from fewstep.data import ImageSet
from fewstep.distributed import first_rank, gather, hardware, world
from fewstep.download import cache
from fewstep.drawing import generate, start_noise
from fewstep.errors import InputError
from fewstep.finite import check_finite
from fewstep.generator import Generator
from fewstep.guidance import guidance_interval, guidance_weight, unguided
from fewstep.metrics import EvalProtocol, Measures
from fewstep.plugins import name_of
from fewstep.process import Flow
from fewstep.requests import Requests, make_requests
from fewstep.run_folder import Run
from fewstep.runs import weights_hash
from fewstep.scores import Score, score_from


class Evaluator:
    """Scores any number of generators against one set of real images, by one protocol.

    If the set has no classes, which the protocol's default extractor needs, another is used, and
    one line on stderr says so. The prompts of samples are the captions of `prompted`, by default
    those of the real images.

    Raises: InputError if the protocol's extractor or measures cannot be used with these images.
    """

    def __init__(
        self, images: ImageSet, protocol: EvalProtocol, *, prompted: ImageSet | None = None
    ) -> None:
        self.images = images
        self.protocol = protocol
        self.prompted = prompted
        name = protocol.extractor
        if protocol.unlabelled_extractor and not metrics.has_classes(images):
            name = protocol.unlabelled_extractor
            if first_rank():
                lack = "no labels" if images.labels is None else "only one class"
                print(
                    f"fewstep: {images.name} has {lack}, and the extractor {protocol.extractor} "
                    f"learns classes: its scores use the extractor {name}, unless another is set",
                    file=sys.stderr,
                )
        self.extractor = metrics.make_extractor(name, images, resize=protocol.resize, cache=cache())
        measures = [metrics.find_measure(name) for name in protocol.measures]
        self.extra = [each for each in measures if isinstance(each, metrics.Measure)]
        self.prompt_measures = [
            each.create(images, prompted=prompted, cache=cache())
            for each in measures
            if not isinstance(each, metrics.Measure)
        ]
        self._reference: metrics.Reference | None = None

    def prepare(self) -> Pull[int, None, metrics.Reference]:
        """Compute the features of the real images, or read them from the cache.

        Yields the number of images done so far.
        """
        if self._reference is None:
            self._reference = yield from metrics.build_reference(
                self.extractor, self.images, cache=cache()
            )
        return self._reference

    @property
    def reference(self) -> metrics.Reference:
        """The features of the real images."""
        return exhaust(self.prepare())

    @property
    def reference_name(self) -> str:
        """Name, size and fingerprint of the set of real images, and of another one of prompts."""
        sets = [self.images] if self.prompted is None else [self.images, self.prompted]
        names = [f"{each.name} ({len(each)}, {each.fingerprint[:12]})" for each in sets]
        return ", with captions of ".join(names)

    @property
    def protocol_key(self) -> tuple[object, ...]:
        """The `Score.protocol` of the scores that this evaluator measures."""
        extractor = self.extractor
        return (
            self.protocol.samples,
            extractor.name,
            extractor.hash,
            extractor.resize,
            self.reference_name,
        )

    def score(
        self,
        generator: Generator,
        *,
        steps: int,
        seed: int = 0,
        batch: int = 500,
        shared: bool = False,
    ) -> Score:
        """Score a generator at `steps` sampling steps.

        Samples have the classes and prompts of `requests.make_requests`. With `shared`, the
        processes of `torchrun`, which must all call this, generate the batches in turn; each of
        them returns the score that one process would.

        Raises: InputError if the generator's images have another shape than the real ones.
        """
        return exhaust(
            self.iter_score(generator, steps=steps, seed=seed, batch=batch, shared=shared)
        )

    def iter_score(
        self,
        generator: Generator,
        *,
        steps: int,
        seed: int = 0,
        batch: int = 500,
        shared: bool = False,
    ) -> Pull[int, None, Score]:
        """Like `score`, but yields the number of samples done so far and returns the score."""
        if generator.image_shape != self.images.shape:
            raise InputError(
                f"the generator's images have shape {generator.image_shape}, but those of the "
                f"reference set {self.images.name} have {self.images.shape}"
            )
        samples = self.protocol.samples
        requests = make_requests(generator.spec, self.images, self.prompted)
        self._check_prompts(requests)
        accumulator = metrics.ScoreAccumulator(
            self.reference,
            samples,
            cycle=requests.cycle,
            extra=self.extra,
            prompt_measures=self.prompt_measures,
        )
        rank, ranks = world() if shared else (0, 1)
        settings: Any = {"steps": steps, "seed": seed, "batch": batch, **requests.turns}
        work = generate(generator, samples, share=(rank, ranks), **settings)
        for first in range(0, samples, ranks * batch):
            outputs: list[metrics.BatchOutput] = []
            for rows, images in islice(work, 1):  # none where the last batch is another rank's
                conditions = requests.classes_of(rows), requests.prompts_of(rows)
                outputs = list(accumulator.outputs(images, *conditions))
            for parts in gather(outputs) if shared else [outputs]:
                for output in parts:
                    accumulator.add(output)
            yield min(first + ranks * batch, samples)
        measures = accumulator.measures() if rank == 0 else None
        measures = gather(measures)[0] if shared else measures
        assert measures
        return self._make_score(generator, steps, seed, requests, measures)

    def _check_prompts(self, requests: Requests) -> None:
        """Raise InputError if a measure needs prompts and the samples have none."""
        for measure in self.prompt_measures:
            if requests.prompts is None:
                name = name_of("measure", type(measure))
                raise InputError(
                    f"the measure {name} compares images with captions, and the generator reads "
                    "none: leave the measure out"
                )

    def _make_score(
        self,
        generator: Generator,
        steps: int,
        seed: int,
        requests: Requests,
        measures: Measures,
    ) -> Score:
        """The measures with everything that they depend on."""
        if not math.isfinite(measures.frechet):
            raise InputError(
                f"the Fréchet distance is {measures.frechet}: the extractor {self.extractor.name} "
                "computes NaN or infinite features of these images; use another extractor"
            )
        backbone = generator.denoiser.backbone
        return Score(
            steps=steps,
            sampler=name_of("sampler", type(generator.step)),
            evaluations=count_evaluations(generator, steps),
            guidance=guidance_weight(backbone),
            guidance_interval=guidance_interval(backbone),
            autoguidance=weak_network(backbone) is not None,
            weights=weights_hash(generator)[:16],
            number_format=generator.denoiser.precision,
            samples=self.protocol.samples,
            labels=requests.label_source,
            prompts=requests.prompt_source,
            extractor=self.extractor.name,
            extractor_hash=self.extractor.hash,
            features=len(self.reference.moments.mean),
            resize=self.extractor.resize,
            reference=self.reference_name,
            real=len(self.images),
            seed=seed,
            seconds_per_image=seconds_per_image(generator, steps),
            device=hardware(generator.device),
            measures=measures,
        )


Done = TypeVar("Done")
Result = TypeVar("Result")


def exhaust(
    work: Pull[Done, None, Result], update: Callable[[Done], object] | None = None
) -> Result:
    """Run a generator to its end and return its result; `update` is called with each value that it
    yields."""
    while True:
        try:
            done = next(work)
        except StopIteration as end:
            return end.value
        if update:
            update(done)


@torch.inference_mode()
def straightness(
    generator: Generator, *, samples: int = 500, steps: int = 32, seed: int = 0
) -> float:
    """How far the paths from noise to image are from straight lines; 0 if they are straight.

        S = ∫ E|velocity − (x_1 − x_0)|² dt / E|x_1 − x_0|²

    The integral is the straightness of Liu et al. (2022, arXiv:2209.03003, section 2.2), here
    divided by the squared length of the lines. It is measured under `Flow`, whatever the process of
    the network, with `steps` Euler steps, whose mean velocity is x_1 − x_0.

    Raises: InputError if the paths contain NaN or infinite values.
    """
    flow = Generator(generator.denoiser.under(Flow()), generator.spec)
    times = flow.grid(steps, flow.denoiser).tolist()
    rates = torch.tensor([*times, 0.0], dtype=torch.float64).diff().tolist()
    bend, chord = 0.0, 0.0
    for _, noise, cond in start_noise(flow, samples, seed=seed, batch=500):
        path = (x.double() for x in flow.path(noise, steps=steps, cond=cond))
        before = next(path)
        mean, square = torch.zeros_like(before), torch.zeros_like(before)
        for x, rate in zip(path, rates, strict=True):
            velocity = (x - before) / rate
            mean, square, before = mean + velocity / steps, square + velocity**2 / steps, x
        check_finite(flow, before, partial(flow.path, noise, steps=steps, cond=cond))
        bend += float((square - mean.square()).sum())
        chord += float(mean.square().sum())
    return bend / chord


@torch.inference_mode()
def count_evaluations(generator: Generator, steps: int) -> int:
    """The number of network evaluations per image, counted on one image.

    An evaluation with guidance counts twice, also where the network of autoguidance is smaller.
    """
    backbone = generator.denoiser.backbone
    weak = weak_network(backbone)
    calls = [0]

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[0] += inputs[0].shape[0]  # classifier-free guidance has two rows for an image

    networks = [unguided(backbone), *([weak.backbone] if weak else [])]
    trunks = {trunk for network in networks for trunk in network.trunks}
    handles = [trunk.register_forward_pre_hook(count) for trunk in trunks]
    try:
        _one_image(generator, steps)
    finally:
        for handle in handles:
            handle.remove()
    return calls[0]


@torch.inference_mode()
def seconds_per_image(generator: Generator, steps: int, *, repeats: int = 9) -> float:
    """The median time in seconds to generate one image at batch size 1, after a warm-up."""
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


def count_parameters(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in module.parameters())


def cached_score(
    address: str | Path, evaluator: Evaluator, generator: Generator, *, steps: int, seed: int
) -> Score | None:
    """The latest score in a run folder with the same weights, sampler, precision, protocol, steps
    and seed.

    None if there is none, or if it lacks an extra measure of the protocol. The time per image is
    measured again on this machine.
    """
    if not Path(address).is_dir():
        return None
    number_format = generator.denoiser.precision
    key = (weights_hash(generator)[:16], number_format, *evaluator.protocol_key, steps, seed)
    for line in reversed(Run(address).scores()):
        if line.get("version") != metrics.VERSION or "score" not in line:
            continue
        score = score_from(line["score"])
        extra = {m.key for m in (*evaluator.extra, *evaluator.prompt_measures)}
        missing = extra - {e.measure.key for e in score.measures.extra}
        own = (score.weights, score.number_format, *score.protocol, score.steps, score.seed)
        if own == key and not missing:
            device, seconds = hardware(generator.device), seconds_per_image(generator, steps)
            return replace(score, device=device, seconds_per_image=seconds)
    return None
