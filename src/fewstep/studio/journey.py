"""The way of a sample: its states x_t, the image that the network sees in each, and velocities."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.generator import Generator
from fewstep.noise import RowNoise
from fewstep.sampling import StepContext
from fewstep.studio.workshop import Request


@dataclass(frozen=True, eq=False)
class Journey:
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
def travel(request: Request) -> Journey:
    """The way of a request's sample."""
    generator = request.generator()
    cond = request.cond()
    cond = cond and cond.to(generator.device)
    noise = request.noise().to(generator.device)
    seeds = request.seeds()
    path = generator.path(noise, steps=request.steps, cond=cond, seed=seeds)
    denoiser = generator.denoiser
    times = [float(t) for t in generator.grid(generator.nearest(request.steps), denoiser)]
    points = torch.tensor(times, dtype=torch.float64)
    scales = (denoiser.process.alpha(points) + denoiser.process.sigma(points)).tolist()
    scales = [*scales, 1.0]
    states, predictions = tuple(path), tuple[Tensor, ...]()
    if not generator.step.own_grid:
        # strict=False: the last state is the image itself
        pairs = zip(states, times, strict=False)
        predictions = tuple(_predict(generator, state, t, cond) for state, t in pairs)
    if generator.decoder:  # latents are shown as the images that they stand for, on their scale
        pairs = zip(states, scales, strict=True)
        states = tuple(scale * generator.decode(state / scale) for state, scale in pairs)
        predictions = tuple(map(generator.decode, predictions))
    return Journey(
        tuple(times),
        tuple(state.cpu() for state in states),
        tuple(x0.cpu() for x0 in predictions),
        tuple(scales),
    )


def _predict(generator: Generator, x_t: Tensor, t: float, cond: Condition | None) -> Tensor:
    """The image that the network predicts from `x_t`; a flow map's step from t to the end."""
    context = StepContext(generator.denoiser, cond, RowNoise(range(len(x_t))))
    return context.predict_to(x_t, t, None).x0


@torch.inference_mode()
def arrows(request: Request, t: float, points: Tensor) -> Tensor:
    """The velocity (n, 2) of a toy's process at each of `points` (n, 2) at time t."""
    generator = request.generator()
    labels = request.labels and request.labels[:1] * len(points)
    cond = None if labels is None else Condition(torch.tensor(labels, device=generator.device))
    context = StepContext(generator.denoiser, cond, RowNoise(range(len(points))))
    return context.predict(points.to(generator.device), t).velocity.cpu()
