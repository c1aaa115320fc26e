"""UniPC: a multistep predictor, and a corrector that needs no network call of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor

from fewstep.ranges import Positive
from fewstep.sampling.base import Step, StepContext
from fewstep.sampling.clipping import clamp
from fewstep.tables import check_fields

SERIES_BELOW = 0.5
"""Gain below which moments are summed as a series; the recurrence would cancel there."""
SERIES_TERMS = 14


class _Memory(NamedTuple):
    """What a step leaves for the next one; lists have the newest value first."""

    state: Tensor
    """The corrected state at the start of the step."""
    sigma: Tensor
    """sigma at that time."""
    gains: list[float]
    """Gains of ln(alpha/sigma): those of the step and of the ones before."""
    images: list[Tensor]
    """Predicted images at the starts of these steps."""


@dataclass(frozen=True)
class UniPC(Step):
    """Extrapolates the image from the last predictions, and corrects the state by the next one.

    Zhao et al. 2023, arXiv:2302.04867, with B(h) = exp(h) − 1 ("bh2") and predictions of the image,
    as in diffusers. The network is called once a step, at the predicted state. The first steps
    combine as many predictions as there are, and the last one returns the predicted image.
    """

    deterministic: ClassVar[bool] = True
    order: Literal[2, 3] = 2
    """Number of predictions that a predictor step combines; the corrector combines one more."""
    clip: Positive | None = None
    """Clamp each predicted image to ±clip before the last ones are combined."""

    def __post_init__(self) -> None:
        check_fields(self, "unipc")

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        prediction = context.predict(x_t, t)
        image = clamp(prediction.x0, self.clip)
        if s is None:
            return image, None
        before: _Memory | None = context.memory
        gains: list[float] = []
        images = [image]
        if before is not None:
            x_t = _advance(before.state, prediction.alpha, prediction.sigma / before.sigma, before)
            x_t = x_t + _correction(prediction.alpha, before, image)
            # the step from pure noise has an infinite gain: there is no line through its image
            count = sum(map(math.isfinite, before.gains))
            gains, images = before.gains[:count], [image, *before.images[:count]]
        gain = prediction.coefficients.log_ratio - context.coefficients(s, x_t).log_ratio
        # the last step before the image is of order 2 at most, as in the authors' code
        order = min(self.order, 2) if s in context.times[-1:] else self.order
        gains = [float(gain), *gains[: order - 1]]
        step = _Memory(x_t, prediction.sigma, gains, images[:order])
        alpha_s, sigma_s = context.at(s, like=x_t)
        x_s = _advance(x_t, alpha_s, sigma_s / prediction.sigma, step)
        nodes = _nodes(step)
        # of two predictions, the published code halves the line, as in DPM-Solver++ 2M
        weights = [0.5] if len(nodes) == 1 else _weights(nodes, step.gains[0])
        return x_s + _differences(alpha_s, step, nodes, weights), step


def _advance(x: Tensor, alpha_s: Tensor, sigma_factor: Tensor, step: _Memory) -> Tensor:
    """The state after a step in which the predicted image is constant."""
    return sigma_factor * x - alpha_s * (math.expm1(-step.gains[0]) * step.images[0])


def _correction(alpha_s: Tensor, step: _Memory, image: Tensor) -> Tensor:
    """The rest of the state at the end of a step, given the image predicted there."""
    nodes = _nodes(step)
    weights = _weights([*nodes, 1.0], step.gains[0]) if nodes else [0.5]
    rest = -alpha_s * (math.expm1(-step.gains[0]) * weights[-1] * (image - step.images[0]))
    return rest + _differences(alpha_s, step, nodes, weights) if nodes else rest


def _differences(
    alpha_s: Tensor, step: _Memory, nodes: Sequence[float], weights: Sequence[float]
) -> Tensor | float:
    """What the differences to the earlier images add to the state."""
    scale = -math.expm1(-step.gains[0])
    total: Tensor | float = 0.0
    for node, weight, image in zip(nodes, weights, step.images[1:], strict=False):
        total = total + alpha_s * (scale * weight / node * (image - step.images[0]))
    return total


def _nodes(step: _Memory) -> list[float]:
    """Places of the earlier images, in gains of this step from its start: negative numbers."""
    earlier = np.cumsum(step.gains[1:])
    return [float(-total / step.gains[0]) for total in earlier]


def _weights(nodes: Sequence[float], gain: float) -> list[float]:
    """Weights w of the slopes to the images at `nodes`: Σ w·nodeⁱ⁻¹ = the mean of uⁱ, i = 1, 2, …

    u goes from 0 to 1 in the step, with a density proportional to exp(gain·u).
    """
    powers = np.vander(nodes, increasing=True).T
    return np.linalg.solve(powers, _moments(gain, len(nodes))).tolist()


def _moments(gain: float, count: int) -> list[float]:
    """Means of u, u², … under the density of `_weights`."""
    if gain < SERIES_BELOW:
        terms = range(SERIES_TERMS)
        sums = [
            sum((-gain) ** k * math.factorial(i) / math.factorial(i + k + 1) for k in terms)
            for i in range(count + 1)
        ]
        return [total / sums[0] for total in sums[1:]]
    mass = -math.expm1(-gain)
    means = [1.0]
    for i in range(1, count + 1):
        means.append((1 / mass) - i / gain * means[-1])
    return means[1:]
