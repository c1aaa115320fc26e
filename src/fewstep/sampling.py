"""Samplers: the loop from noise to images, and the steps that it can take.

With p = model(x_t, t), fresh noise z and a renoise share r, most samplers are one formula:

    x_s = alpha_s·p.x0 + sigma_s·(√(1−r)·p.eps + √r·z)

r = 0 is DDIM (and Euler under `Flow` and `VE`), r = 1 multistep consistency sampling, and
r = 1 − (alpha_t·sigma_s/(alpha_s·sigma_t))² DDPM's posterior. The last step, which has no further
time, returns the image p.x0.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fewstep.coefficients import Coefficients, multistep_factors
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser, Prediction, check_times
from fewstep.errors import InputError
from fewstep.noise import RowNoise
from fewstep.ranges import Positive, Probability
from fewstep.tables import check_fields


@dataclass
class StepContext:
    """What a step needs besides the state x_t."""

    model: Denoiser
    cond: Condition | None
    noise: RowNoise
    memory: Any = None
    """What the previous step of this sample returned; None at the first."""
    table: Mapping[float, Coefficients] = field(default_factory=dict[float, Coefficients])
    """The coefficients at the sample's times; those at other times are computed when used."""

    def predict(self, x_t: Tensor, t: float) -> Prediction:
        """The network's prediction at `t`; of a flow map, with `t` as its destination."""
        return self.model(x_t, self.coefficients(t, x_t), cond=self.cond)

    def predict_to(self, x_t: Tensor, t: float, s: float | None) -> Prediction:
        """As `predict`, but a flow map's destination is `s`; None stands for the image."""
        if not self.model.is_flow_map:
            return self.predict(x_t, t)
        end = self.coefficients(self.model.span[0] if s is None else s, x_t)
        return self.model(x_t, self.coefficients(t, x_t), s=end, cond=self.cond)

    def at(self, t: float, *, like: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at `t`, of shape (b, 1, ...) to multiply the batch `like` (b, ...)."""
        at, shape = self.coefficients(t, like), (like.shape[0], *[1] * (like.ndim - 1))
        alpha = at.alpha.to(like.device, non_blocking=like.is_cuda)
        sigma = at.sigma.to(like.device, non_blocking=like.is_cuda)
        return alpha.expand(shape), sigma.expand(shape)

    def coefficients(self, t: float, like: Tensor) -> Coefficients:
        """The coefficients at `t`, as numbers of the type of `like`, and at least float32."""
        entry = self.table.get(t)
        if entry is None or entry.alpha.dtype != like.dtype:
            return self.model.coefficients(t, like)
        return entry


class Step(ABC):
    """Base class of samplers: one step from a time to the next.

    A step is a frozen dataclass; its fields are its settings, in recipes and in weights.
    """

    noun: ClassVar[str] = "sampler"
    deterministic: ClassVar[bool] = False
    """Whether images are a function of the starting noise alone, as recording requires."""
    evaluations: ClassVar[int] = 1
    """Network calls of a step; the last step, which ends at the image, may need fewer."""
    own_grid: ClassVar[bool] = False
    """Whether its grids suit no other sampler: then `with_sampler` does not pass them on."""

    @abstractmethod
    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        """Step from `x_t` (b, ...) at time t to time s, or to the image if s is None.

        Returns the new state, and the value of `context.memory` at the next step.
        """


@dataclass(frozen=True)
class Renoise(Step):
    """Replace a share of the noise variance by fresh noise; share 1 is consistency sampling.

    Song et al. 2023, arXiv:2303.01469, algorithm 1.
    """

    share: Probability = 1.0
    """Share of the noise variance to replace, 0 to 1."""
    clip: Positive | None = None
    """Clamp the predicted image to ±clip."""

    def __post_init__(self) -> None:
        check_fields(self, "renoise")

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        # with fresh noise, a flow map predicts the image instead of the state at s
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
    clip: Positive | None = None
    """Clamp the predicted image to ±clip, but not the predicted noise."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        return Renoise(share=0.0, clip=self.clip)(context, x_t, t, s)


@dataclass(frozen=True)
class Ancestral(Step):
    """DDPM's step: the mean of q(x_s | x_t, x0), and noise of its variance or a larger one.

    Ho et al. 2020, arXiv:2006.11239, section 3.2.
    """

    variance: Literal["posterior", "large"] = "posterior"
    """Noise variance, at eta = 1: that of q, or DDPM's beta_t, which is
    sigma_t² − (alpha_t/alpha_s)²·sigma_s²."""
    eta: Probability = 1.0
    """Factor of the noise's standard deviation, 0 to 1, as in DDIM; the mean is that of DDIM."""
    clip: Positive | None = None
    """Clamp the predicted image to ±clip."""

    def __post_init__(self) -> None:
        check_fields(self, "ancestral")

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        if s is None:
            return _clamp(prediction.x0, self.clip), None
        x0, eps = _image_and_noise(prediction, self.clip)
        alpha_s, sigma_s = context.at(s, like=x_t)
        log_t, log_s = (context.coefficients(time, x_t).log_ratio for time in (t, s))
        # 1 − (alpha_t·sigma_s/(alpha_s·sigma_t))², without cancellation
        fresh = -math.expm1(2 * float(log_s - log_t))
        share = self.eta**2 * fresh
        mean = alpha_s * x0 + sigma_s * math.sqrt(1 - share) * eps
        spread = math.sqrt(share) * (prediction.sigma if self.variance == "large" else sigma_s)
        return mean + spread * context.noise.like(x_t), None


@dataclass(frozen=True)
class Heun(Step):
    """Second order: the mean of the slopes at both ends; the last step is Euler's.

    Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    deterministic: ClassVar[bool] = True
    evaluations: ClassVar[int] = 2
    clip: Positive | None = None
    """Clamp the predicted image to ±clip; slopes are those of the noise that then makes x_t."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        if s is None:
            return _clamp(prediction.x0, self.clip), None
        slope = _velocity(prediction, self.clip)
        ahead = context.predict(x_t + (s - t) * slope, s)
        return x_t + 0.5 * (s - t) * (slope + _velocity(ahead, self.clip)), None


@dataclass(frozen=True)
class Multistep(Step):
    """DPM-Solver++ (2M and 3M): extrapolates the image from the last predictions.

    Lu et al. 2022, arXiv:2211.01095. The first steps combine as many predictions as there are, and
    the last one returns the predicted image.
    """

    deterministic: ClassVar[bool] = True
    order: Literal[2, 3] = 2
    """Number of predictions that a step combines: 2 (2M) or 3 (3M, the teacher of SFD)."""
    clip: Positive | None = None
    """Clamp each predicted image to ±clip before the last ones are combined."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        image = _clamp(prediction.x0, self.clip)
        if s is None:
            return image, None
        gain = prediction.coefficients.log_ratio - context.coefficients(s, x_t).log_ratio
        gains, images = [gain], [image]
        if context.memory is not None:
            gains, images = gains + context.memory[0], images + context.memory[1]
        x0 = image
        pairs = zip(multistep_factors(gains), images[:-1], images[1:], strict=True)
        for factor, newer, older in pairs:
            x0 = x0 + factor.to(x0.dtype) * (newer - older)
        alpha_s, sigma_s = context.at(s, like=x_t)
        x_s = alpha_s * x0 + sigma_s / prediction.sigma * (x_t - prediction.alpha * x0)
        return x_s, (gains[: self.order - 1], images[: self.order - 1])


@dataclass(frozen=True)
class Corrector(Step):
    """A transfer step, then one Langevin step at its end, whose length `snr` sets for each row.

    Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5.
    """

    evaluations: ClassVar[int] = 2
    snr: Positive = 0.16
    """Ratio of the Langevin step's gradient to its noise."""
    clip: Positive | None = None
    """Clamp the image that the transfer step predicts to ±clip."""

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        x_s, _ = Transfer(clip=self.clip)(context, x_t, t, s)
        if s is None:
            return x_s, None
        prediction = context.predict(x_s, s)
        z, sigma, eps = context.noise.like(x_t), prediction.sigma, prediction.eps
        # in units of sigma², as score = −eps/sigma: length = 2·(snr·|z|/|eps|)² = ½·spread²
        spread = 2 * self.snr * (_norm(z) / _norm(eps))
        return x_s - 0.5 * spread.square() * sigma * eps + spread * sigma * z, None


def _clamp(x0: Tensor, clip: float | None) -> Tensor:
    if clip is None:
        return x0
    # 0 · inf is NaN: the clamp would hide infinite values, which are a failure of the network
    return x0.clamp(-clip, clip) + 0 * x0


def _image_and_noise(prediction: Prediction, clip: float | None) -> tuple[Tensor, Tensor]:
    """The predicted x0, and eps; with `clip`, the clamped x0, and the noise that then makes x_t."""
    if clip is None:
        return prediction.x0, prediction.eps
    x0 = _clamp(prediction.x0, clip)
    return x0, (prediction.x_t - prediction.alpha * x0) / prediction.sigma


def _velocity(prediction: Prediction, clip: float | None) -> Tensor:
    """The velocity of `_image_and_noise`."""
    if clip is None:
        return prediction.velocity
    output = prediction.target(*_image_and_noise(prediction, clip))
    return replace(prediction, output=output).velocity


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)


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

    Raises: InputError for times outside the model's span, no times, or times that do not decrease.
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
    return grid.tolist()


def iterate(
    step: Step, context: StepContext, x: Tensor, times: Sequence[float]
) -> Iterator[Tensor]:
    """`x`, which is the state at the first of `times`, then the state after each step."""
    yield x
    for t, s in zip(times, [*times[1:], None], strict=True):
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
    image: Tensor | None = None,
) -> Tensor:
    """Images (b, ...) from standard normal `noise` (b, ...): the last tensor of `path`."""
    # a deque of length one frees the states on the way
    states = path(model, noise, times, step=step, cond=cond, seed=seed, image=image)
    return deque(states, maxlen=1).pop()
