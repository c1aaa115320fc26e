"""The loop from noise to images."""

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.denoiser import Denoiser, check_times
from fewstep.errors import InputError
from fewstep.noise import RowNoise
from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.one_formula import Transfer


def path(
    model: Denoiser,
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step | None = None,
    cond: Condition | None = None,
    seed: int | Sequence[int] = 0,
    image: Tensor | None = None,
) -> Iterator[Tensor]:
    """The states x_t (b, ...) of a sample at each of `times`, then its image: N + 1 tensors.

    The first state is sigma(t₀)·noise, also if t₀ is before the end of the span; with an `image`
    (b, ...), it is alpha(t₀)·image + sigma(t₀)·noise. `seed` is for steps that draw noise: one seed
    per row, or that of the first row, to which the others add 1, 2, ...

    Raises: InputError for times outside the model's span, no times, times that do not decrease, or
    a first time without noise.
    """
    points = check_path(model, times)
    seeds = range(seed, seed + len(noise)) if isinstance(seed, int) else seed
    table = model.tabulate([*points, model.span[0]], like=noise)
    x = model.process.start(noise, points[0])
    if image is not None:
        x = x + table[points[0]].alpha * image
    context = StepContext(model, cond, RowNoise(seeds), table=table)
    return iterate(step or Transfer(), context, x, points)


def check_path(model: Denoiser, times: Tensor | Sequence[float]) -> list[float]:
    """The times as numbers.  Raises: InputError if they are not those of a sample; see `path`."""
    grid = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if grid.numel() == 0:
        raise InputError("a sample needs at least 1 step, and there are 0 times")
    check_times(grid, model.span)
    if (grid.diff() >= 0).any():
        raise InputError("sampling times must decrease, from noise to data")
    if float(model.process.sigma(grid[0])) == 0:
        raise InputError(
            f"the sample starts at t = {float(grid[0]):g}, which has no noise: take more steps, or "
            "another grid"
        )
    return grid.tolist()


def iterate(
    step: Step, context: StepContext, x: Tensor, times: Sequence[float]
) -> Iterator[Tensor]:
    """`x`, which is the state at the first of `times`, then the state after each step.

    A step to a time without noise is the last one, as the state there is the image already: the
    step from there changes nothing.
    """
    yield x
    ends_early = len(times) > 1 and float(context.coefficients(times[-1], x).sigma) == 0
    context.times = times[:-1] if ends_early else times
    for t, s in zip(context.times, [*context.times[1:], None], strict=True):
        x, context.memory = step(context, x, t, s)
        yield x
    if ends_early:
        yield x


def sample(
    model: Denoiser,
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step | None = None,
    cond: Condition | None = None,
    seed: int | Sequence[int] = 0,
    image: Tensor | None = None,
) -> Tensor:
    """Images (b, ...) from standard normal `noise` (b, ...): the last tensor of `path`."""
    # a deque of length one frees the states on the way
    states = path(model, noise, times, step=step, cond=cond, seed=seed, image=image)
    return deque(states, maxlen=1).pop()
