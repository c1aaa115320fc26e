"""From noise to images: one loop, and the steps that it can take.

With p = model(x_t, t), fresh noise z and a renoise share r, one formula serves most samplers:

    x_s = alpha_s·p.x0 + sigma_s·(√(1−r)·p.eps + √r·z)

r = 0 is DDIM (and Euler under `Flow` and `VE`), r = 1 multistep consistency sampling, and
r = 1 − (alpha_t·sigma_s/(alpha_s·sigma_t))² DDPM's posterior. Every step ends at the image when
there is no further time: it then returns p.x0.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from inspect import signature
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.circuits.view import Circuit
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser, Prediction, check_times
from fewstep.errors import InputError


class RowNoise:
    """Standard normal noise for each row, from the row's own seed.

    A row's numbers depend on its seed and on how many were drawn before, never on the batch it is
    in. Philox counters, in NumPy, so that the numbers are the same on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = seeds
        self.drawn = 0

    def like(self, x: Tensor) -> Tensor:
        """The next draw (b, ...), in the shape, type and place of `x`."""
        self.drawn += 1
        shape = tuple(x.shape[1:])
        return _normal(self.seeds, self.drawn, shape).to(x.device, x.dtype)


def noise_from_seeds(
    seeds: Sequence[int], shape: tuple[int, ...], *, device: torch.device | str = "cpu"
) -> Tensor:
    """The starting noise (b, *shape) of each seed: the same row for a seed, whatever the batch."""
    return _normal(seeds, 0, shape).to(device)


def _normal(seeds: Sequence[int], draw: int, shape: tuple[int, ...]) -> Tensor:
    rows = np.empty((len(seeds), *shape), dtype=np.float32)
    bits = np.random.Philox(key=0)
    generator, start = np.random.Generator(bits), bits.state
    for row, seed in zip(rows, seeds, strict=True):
        # keyed anew for each row: making a Philox costs four times as much, for entropy unused
        start["state"]["key"][:] = seed, draw
        bits.state = start
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(rows)


class StepContext(NamedTuple):
    """What a step needs beside the state: the model, the condition, noise, and its own memory."""

    model: Denoiser
    cond: Condition | None
    draws: RowNoise
    memory: Any = None

    def ask(self, x_t: Tensor, t: float) -> Prediction:
        """What the network says at `t`; a flow map, of staying there."""
        return self.model(x_t, t, cond=self.cond)

    def go(self, x_t: Tensor, t: float, s: float | None) -> Prediction:
        """As `ask`, but a flow map is asked about the way to `s`, or to the image for None."""
        if not self.model.is_flow_map:
            return self.ask(x_t, t)
        return self.model(x_t, t, s=self.model.span[0] if s is None else s, cond=self.cond)


Step = Callable[[StepContext, Tensor, float, float | None], tuple[Tensor, Any]]
"""From x_t at t to s, or to the image where s is None; the second result is the step's memory."""


def transfer(
    walk: StepContext, x_t: Tensor, t: float, s: float | None, *, clip: float | None = None
) -> tuple[Tensor, Any]:
    """Keep the predicted noise: DDIM, and Euler under `Flow` and `VE`.  Song et al. 2010.02502.

    `clip` keeps the predicted image within ±clip, as DDPM's samplers do, and leaves the noise.
    """
    return renoise(walk, x_t, t, s, share=0.0, clip=clip)


def renoise(
    walk: StepContext,
    x_t: Tensor,
    t: float,
    s: float | None,
    *,
    share: float = 1.0,
    clip: float | None = None,
) -> tuple[Tensor, Any]:
    """Replace a share of the noise variance by fresh noise; all of it is consistency sampling.

    Song et al. 2023, arXiv:2303.01469, algorithm 1. `clip` is `transfer`'s.
    """
    said = walk.go(x_t, t, s if share == 0 else None)  # fresh noise goes on an image
    x0 = _clipped(said.x0, clip)
    if s is None:
        return x0, None
    alpha_s, sigma_s = walk.model.process.at(s, like=x_t)
    if share == 0:
        return alpha_s * x0 + sigma_s * said.eps, None
    noise = math.sqrt(share) * walk.draws.like(x_t)
    if share < 1:
        noise = noise + math.sqrt(1 - share) * said.eps
    return alpha_s * x0 + sigma_s * noise, None


def _clipped(x0: Tensor, clip: float | None) -> Tensor:
    return x0 if clip is None else x0.clamp(-clip, clip)


def ancestral(
    walk: StepContext,
    x_t: Tensor,
    t: float,
    s: float | None,
    *,
    variance: Literal["posterior", "large"] = "posterior",
    eta: float = 1.0,
    clip: float | None = None,
) -> tuple[Tensor, Any]:
    """DDPM's step: the mean of q(x_s | x_t, x0), and noise of its variance or of the larger one.

    `large` adds DDPM's beta_t, sigma_t² − (alpha_t/alpha_s)²·sigma_s², around the same mean; `eta`
    is DDIM's; `clip` keeps x0 within ±clip. Ho et al. 2020, arXiv:2006.11239, section 3.2.
    """
    said = walk.ask(x_t, t)
    x0 = _clipped(said.x0, clip)
    if s is None:
        return x0, None
    alpha_t, sigma_t = said.alpha, said.sigma
    # q depends on x_t and x0 alone, so the noise is what leads from a clipped x0 to x_t
    eps = said.eps if clip is None else (x_t - alpha_t * x0) / sigma_t
    alpha_s, sigma_s = walk.model.process.at(s, like=x_t)
    share = eta**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)).square())
    mean = alpha_s * x0 + sigma_s * torch.sqrt(1 - share) * eps
    spread = sigma_s * torch.sqrt(share)
    if variance == "large":
        spread = torch.sqrt(sigma_t.square() - (alpha_t / alpha_s * sigma_s).square())
    return mean + spread * walk.draws.like(x_t), None


def heun(walk: StepContext, x_t: Tensor, t: float, s: float | None) -> tuple[Tensor, Any]:
    """Second order: the mean of the slopes at both ends; the last step is Euler's.

    Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """
    said = walk.ask(x_t, t)
    if s is None:
        return said.x0, None
    slope = said.velocity
    ahead = walk.ask(x_t + (s - t) * slope, s)
    return x_t + 0.5 * (s - t) * (slope + ahead.velocity), None


def multistep(walk: StepContext, x_t: Tensor, t: float, s: float | None) -> tuple[Tensor, Any]:
    """DPM-Solver++ (2M): second order from the last two predictions.  Lu et al. 2211.01095."""
    said = walk.ask(x_t, t)
    if s is None:
        return said.x0, None
    process = walk.model.process
    grid = torch.tensor([t, s], dtype=torch.float64)
    log_t, log_s = torch.log(process.ratio(grid)).tolist()
    gain, x0 = log_t - log_s, said.x0
    if walk.memory is not None:
        gain_before, x0_before = walk.memory
        # the first gain of a process without signal at its start is infinite: then no correction
        x0 = x0 + 0.5 * gain / gain_before * (x0 - x0_before)
    alpha_s, sigma_s = process.at(s, like=x_t)
    x_s = alpha_s * x0 + sigma_s / said.sigma * (x_t - said.alpha * x0)
    return x_s, (gain, said.x0)


def corrector(
    walk: StepContext, x_t: Tensor, t: float, s: float | None, *, snr: float = 0.16
) -> tuple[Tensor, Any]:
    """A transfer step, then one Langevin step at its end, its length set by `snr` row by row.

    Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5.
    """
    x_s, _ = transfer(walk, x_t, t, s)
    if s is None:
        return x_s, None
    said = walk.ask(x_s, s)
    z = walk.draws.like(x_t)
    # the step's length in units of sigma: 2·(snr·|z|/|sigma·score|)²; score is −eps/sigma
    length = 2 * (snr * _norm(z) / _norm(said.eps)).square()
    return x_s - length * said.sigma * said.eps + torch.sqrt(2 * length) * said.sigma * z, None


def ring(walk: StepContext, x_t: Tensor, t: float, s: float | None) -> tuple[Tensor, Any]:
    """A circuit's own sampler: encode once, update the hidden state, read the image at the end.

    N steps are N updates. There are no images in between: until the last step x_t is returned
    unchanged.
    """
    circuit = Circuit(walk.model)
    z = circuit.encode(x_t, t, cond=walk.cond) if walk.memory is None else walk.memory
    end = walk.model.span[0]
    z = circuit.advance(z, t, end if s is None else s, cond=walk.cond)
    return (circuit.image(z, end), None) if s is None else (x_t, z)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


STEPS: dict[str, Callable[..., tuple[Tensor, Any]]] = {
    step.__name__: step for step in (transfer, ancestral, renoise, heun, multistep, corrector, ring)
}
DETERMINISTIC = ("transfer", "heun", "multistep", "ring")


def describe_step(step: Step) -> dict[str, Any]:
    """A step as JSON: its name and settings; `named_step` reads it back."""
    if isinstance(step, partial):
        return {"name": step.func.__name__, **step.keywords}
    return {"name": getattr(step, "__name__", "")}


def named_step(name: str, **settings: Any) -> Step:
    """The step called `name`, with its keyword settings."""
    if name not in STEPS:
        raise InputError(f"there is no sampler {name!r}; there are: {', '.join(STEPS)}")
    return partial(STEPS[name], **settings) if settings else STEPS[name]


def renamed_step(step: Step, name: str) -> Step:
    """The step called `name`, with those settings of `step` that it takes too: a clip, say."""
    known = signature(named_step(name)).parameters
    settings = {key: value for key, value in describe_step(step).items() if key in known}
    return named_step(name, **settings)


def path(
    model: Denoiser,
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step = transfer,
    cond: Condition | None = None,
    seed: int | Sequence[int] = 0,
) -> Iterator[Tensor]:
    """The states x_t (b, ...) of a sample at each of `times`, then its image: N + 1 tensors.

    The start is sigma(t₀)·noise, at an earlier first time too. `seed` serves the steps that draw:
    one seed a row, or the first row's, the others counting on from it.

    Raises: InputError for times outside the model's span, or none, or not falling.
    """
    grid = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if grid.numel() == 0:
        raise InputError("0 steps were asked for; a sample takes at least 1")
    check_times(grid, model.span)
    if (grid.diff() >= 0).any():
        raise InputError("sampling times must fall from noise to data")
    seeds = range(seed, seed + len(noise)) if isinstance(seed, int) else seed
    walk = StepContext(model, cond, RowNoise(seeds))
    points: list[float] = grid.tolist()
    _, sigma = model.process.at(points[0], like=noise)
    x: Tensor = sigma * noise
    yield x
    for t, s in zip(points, [*points[1:], None], strict=True):
        x, memory = step(walk, x, t, s)
        walk = walk._replace(memory=memory)
        yield x


def sample(
    model: Denoiser,
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step = transfer,
    cond: Condition | None = None,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """Images (b, ...) from standard normal `noise` (b, ...): the end of `path`."""
    # a deque of one: the states on the way are not kept
    return deque(path(model, noise, times, step=step, cond=cond, seed=seed), maxlen=1).pop()
