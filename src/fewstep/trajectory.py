"""The trajectory of a sample: its states x_t, and the image that the network predicts from each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.noise import RowNoise
from fewstep.plugins import name_of
from fewstep.sampling import StepContext, check_path


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The states of one sample after another."""

    times: tuple[float, ...]
    """The time of each state but the last, which is the image."""
    states: tuple[Tensor, ...]
    """x_t (b, *shape) at each time, then the image."""
    predictions: tuple[Tensor, ...]
    """The image x0 (b, *shape) that the network predicts from each state; empty if it has none."""
    scales: tuple[float, ...]
    """alpha + sigma at each time, then 1: dividing by it brings each state to one range."""


@torch.inference_mode()
def trace(
    generator: Generator,
    noise: Tensor,
    *,
    steps: int,
    cond: Condition | None = None,
    seed: int | Sequence[int] = 0,
) -> Trajectory:
    """The trajectory of samples from `noise` (b, *shape), on the CPU.

    Latents are decoded: `states` divided by `scales` are the images that they stand for.

    Raises: InputError as `Generator`.
    """
    times, scales = times_and_scales(generator, steps)
    states = tuple(generator.path(noise, steps=steps, cond=cond, seed=seed))
    predictions = tuple[Tensor, ...]()
    if not why_no_states(generator):
        # strict=False: the last state is the image itself
        pairs = zip(states, times, strict=False)
        predictions = tuple(_predict(generator, state, t, cond) for state, t in pairs)
    if generator.decoder:
        pairs = zip(states, scales, strict=True)
        states = tuple(scale * generator.decode(state / scale) for state, scale in pairs)
        predictions = tuple(map(generator.decode, predictions))
    return Trajectory(
        times,
        tuple(state.cpu() for state in states),
        tuple(x0.cpu() for x0 in predictions),
        scales,
    )


@torch.inference_mode()
def state_images(
    generator: Generator,
    noise: Tensor,
    *,
    steps: int,
    cond: Condition | None = None,
    seed: int | Sequence[int] = 0,
    most: int,
) -> Iterator[Tensor]:
    """Yield at most `most` (at least 2) states of samples, as images (b, *image_shape).

    They are evenly spread over the steps, the first is the noise and the last the samples. Each is
    divided by alpha + sigma, which brings all of them to the range of images.

    Raises: InputError for a sampler that has no states between its steps, and as `Generator`.
    """
    if reason := why_no_states(generator):
        raise InputError(f"{reason}: choose another, such as --sampler transfer")
    _, scales = times_and_scales(generator, steps)
    indices = evenly_spread_indices(len(scales), most)
    path = generator.path(noise, steps=steps, cond=cond, seed=seed)
    for i, (state, scale) in enumerate(zip(path, scales, strict=True)):
        if i in indices:
            yield generator.decode(state if scale == 1 else state / scale)


def times_and_scales(
    generator: Generator, steps: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The times (N) of a sample, and alpha + sigma (N + 1) at each, then 1 for the image.

    Raises: InputError as `sampling.check_path`.
    """
    denoiser = generator.denoiser
    points = generator.grid(generator.nearest(steps, quietly=True), denoiser)
    check_path(denoiser, points)
    scales = denoiser.process.alpha(points) + denoiser.process.sigma(points)
    return tuple(points.tolist()), (*scales.tolist(), 1.0)


def why_no_states(generator: Generator) -> str:
    """The reason why a sample has no states x_t on its way; empty if it has."""
    if not generator.step.own_grid:
        return ""
    name = name_of("sampler", type(generator.step))
    return f"the sampler {name} has no images between its steps"


def evenly_spread_indices(count: int, most: int) -> list[int]:
    """At most `most` (at least 2) indices below `count`, the first and the last among them."""
    if count <= most:
        return [*range(count)]
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _predict(generator: Generator, x_t: Tensor, t: float, cond: Condition | None) -> Tensor:
    """The image that the network predicts from `x_t`; a flow map's step from t to the end."""
    context = StepContext(generator.denoiser, cond, RowNoise(range(len(x_t))))
    return context.predict_to(x_t, t, None).x0
