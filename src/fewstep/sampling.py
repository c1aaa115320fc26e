"""From noise to images: one loop, and the steps that it can take.

With p = model(x_t, t), fresh noise z and a renoise share r, one formula serves most samplers:

    x_s = alpha_s·p.x0 + sigma_s·(√(1−r)·p.eps + √r·z)

r = 0 is DDIM (and Euler under `Flow` and `VE`), r = 1 multistep consistency sampling, and
r = 1 − (alpha_t·sigma_s/(alpha_s·sigma_t))² DDPM's posterior. Every step ends at the image when
there is no further time: it then returns p.x0.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from fewstep import plugins
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser, Prediction, check_times
from fewstep.errors import InputError


class RowNoise:
    """Standard normal noise for each row, from the row's own seed.

    A row's numbers depend on its seed and on how often noise was drawn before, never on the batch
    that it is in. They come from Philox counters in NumPy, so they are equal on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = seeds
        self.draws = 0

    def like(self, x: Tensor) -> Tensor:
        """The next noise, with the shape (b, ...), dtype and device of `x`."""
        self.draws += 1
        shape = tuple(x.shape[1:])
        return _normal(self.seeds, self.draws, shape).to(x.device, x.dtype)


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


@dataclass
class StepContext:
    """What a step needs beside the state: the model, the condition, noise, and its own memory."""

    model: Denoiser
    cond: Condition | None
    noise: RowNoise
    memory: Any = None
    """What the previous step of this sample returned; None at the first."""

    def predict(self, x_t: Tensor, t: float) -> Prediction:
        """The network's prediction at `t`; a flow map predicts as if it stayed there."""
        return self.model(x_t, t, cond=self.cond)

    def predict_to(self, x_t: Tensor, t: float, s: float | None) -> Prediction:
        """As `predict`, but a flow map predicts the way to `s`; None stands for the image."""
        if not self.model.is_flow_map:
            return self.predict(x_t, t)
        return self.model(x_t, t, s=self.model.span[0] if s is None else s, cond=self.cond)

    def at(self, t: float, *, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at `t`, broadcast against `like`."""
        return self.model.process.at(t, like=like)


class Step(ABC):
    """Base class of samplers: how a sample goes from one time to the next.

    A step is a frozen dataclass; its fields are its settings, in recipes and in weights.
    """

    noun: ClassVar[str] = "sampler"
    deterministic: ClassVar[bool] = False
    """Whether images are a function of the starting noise alone, as recording requires."""
    order: ClassVar[int] = 1
    """Order of accuracy as a solver of the probability-flow ODE."""
    evaluations: ClassVar[int] = 1
    """Network calls of a step; the last step, which ends at the image, may need fewer."""
    own_grid: ClassVar[bool] = False
    """Whether its grids suit no other sampler: then `with_sampler` does not pass them on."""

    @abstractmethod
    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        """From `x_t` (b, ...) at time t to time s, or to the image where s is None.

        Returns the new state and what the next step finds in `context.memory`.
        """


@dataclass(frozen=True)
class Renoise(Step):
    """Replace a share of the noise variance by fresh noise; all of it is consistency sampling.

    Song et al. 2023, arXiv:2303.01469, algorithm 1.
    """

    share: float = 1.0
    """Share of the noise variance that is replaced, 0 to 1."""
    clip: float | None = None
    """Clamp the predicted image to ±clip."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        # with fresh noise, a flow map is to predict the image, not the state at s
        prediction = context.predict_to(x_t, t, s if self.share == 0 else None)
        x0 = _clamp(prediction.x0, self.clip)
        if s is None:
            return x0, None
        alpha_s, sigma_s = context.at(s, like=x_t)
        if self.share == 0:
            return alpha_s * x0 + sigma_s * prediction.eps, None
        noise = math.sqrt(self.share) * context.noise.like(x_t)
        if self.share < 1:
            noise = noise + math.sqrt(1 - self.share) * prediction.eps
        return alpha_s * x0 + sigma_s * noise, None


@dataclass(frozen=True)
class Transfer(Step):
    """Keep the predicted noise: DDIM, and Euler under `Flow` and `VE`.  Song et al. 2010.02502."""

    deterministic: ClassVar[bool] = True
    clip: float | None = None
    """Clamp the predicted image to ±clip, as DDPM's samplers do; the noise is left as it is."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        return Renoise(share=0.0, clip=self.clip)(context, x_t, t, s)


@dataclass(frozen=True)
class Ancestral(Step):
    """DDPM's step: the mean of q(x_s | x_t, x0), and noise of its variance or of the larger one.

    Ho et al. 2020, arXiv:2006.11239, section 3.2.
    """

    variance: Literal["posterior", "large"] = "posterior"
    """Of the noise: the posterior's, or DDPM's beta_t, sigma_t² − (alpha_t/alpha_s)²·sigma_s²."""
    eta: float = 1.0
    """DDIM's share of the posterior's standard deviation, 0 to 1."""
    clip: float | None = None
    """Clamp the predicted image to ±clip."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        x0 = _clamp(prediction.x0, self.clip)
        if s is None:
            return x0, None
        alpha_t, sigma_t = prediction.alpha, prediction.sigma
        # q depends on x_t and x0 alone, so the noise is what leads from a clamped x0 to x_t
        eps = prediction.eps if self.clip is None else (x_t - alpha_t * x0) / sigma_t
        alpha_s, sigma_s = context.at(s, like=x_t)
        share = self.eta**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)).square())
        mean = alpha_s * x0 + sigma_s * torch.sqrt(1 - share) * eps
        spread = sigma_s * torch.sqrt(share)
        if self.variance == "large":
            spread = torch.sqrt(sigma_t.square() - (alpha_t / alpha_s * sigma_s).square())
        return mean + spread * context.noise.like(x_t), None


@dataclass(frozen=True)
class Heun(Step):
    """Second order: the mean of the slopes at both ends; the last step is Euler's.

    Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    deterministic: ClassVar[bool] = True
    order: ClassVar[int] = 2
    evaluations: ClassVar[int] = 2

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        if s is None:
            return prediction.x0, None
        slope = prediction.velocity
        ahead = context.predict(x_t + (s - t) * slope, s)
        return x_t + 0.5 * (s - t) * (slope + ahead.velocity), None


@dataclass(frozen=True)
class Multistep(Step):
    """DPM-Solver++ (2M): second order from the last two predictions.  Lu et al. 2211.01095."""

    deterministic: ClassVar[bool] = True
    order: ClassVar[int] = 2

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        if s is None:
            return prediction.x0, None
        ends = torch.tensor([t, s], dtype=torch.float64)
        log_t, log_s = torch.log(context.model.process.ratio(ends)).tolist()
        gain, x0 = log_t - log_s, prediction.x0
        if context.memory is not None:
            last_gain, last_x0 = context.memory
            # the first gain of a process without signal at its start is infinite: no correction
            x0 = x0 + 0.5 * gain / last_gain * (x0 - last_x0)
        alpha_s, sigma_s = context.at(s, like=x_t)
        x_s = alpha_s * x0 + sigma_s / prediction.sigma * (x_t - prediction.alpha * x0)
        return x_s, (gain, prediction.x0)


@dataclass(frozen=True)
class Corrector(Step):
    """A transfer step, then one Langevin step at its end, its length set by `snr` row by row.

    Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5.
    """

    evaluations: ClassVar[int] = 2
    snr: float = 0.16
    """Ratio of the Langevin step's gradient to its noise."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        x_s, _ = Transfer()(context, x_t, t, s)
        if s is None:
            return x_s, None
        prediction = context.predict(x_s, s)
        z, sigma = context.noise.like(x_t), prediction.sigma
        # the step's length in units of sigma: 2·(snr·|z|/|sigma·score|)²; score is −eps/sigma
        length = 2 * (self.snr * _norm(z) / _norm(prediction.eps)).square()
        return x_s - length * sigma * prediction.eps + torch.sqrt(2 * length) * sigma * z, None


def _clamp(x0: Tensor, clip: float | None) -> Tensor:
    return x0 if clip is None else x0.clamp(-clip, clip)


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


def convert_step(step: Step, name: str) -> Step:
    """The sampler `name`, with those settings of `step` that it has too, such as `clip`.

    Raises: InputError for an unknown name.
    """
    kind = plugins.resolve("sampler", name)
    settings = {field.name for field in fields(cast(Any, step))}
    shared = {f.name: getattr(step, f.name) for f in fields(kind) if f.name in settings}
    return kind(**shared)


def path(
    model: Denoiser,
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step | None = None,
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
    step, context = step or Transfer(), StepContext(model, cond, RowNoise(seeds))
    points: list[float] = grid.tolist()
    _, sigma = model.process.at(points[0], like=noise)
    x: Tensor = sigma * noise
    yield x
    for t, s in zip(points, [*points[1:], None], strict=True):
        x, context.memory = step(context, x, t, s)
        yield x


def sample(
    model: Denoiser,
    noise: Tensor,
    times: Tensor | Sequence[float],
    *,
    step: Step | None = None,
    cond: Condition | None = None,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """Images (b, ...) from standard normal `noise` (b, ...): the end of `path`."""
    # a deque of one: the states on the way are not kept
    return deque(path(model, noise, times, step=step, cond=cond, seed=seed), maxlen=1).pop()
