"""Classifier-free guidance: a wrapper around a backbone. Ho and Salimans 2022, arXiv:2207.12598.

An interval of times: Kynkäänniemi et al. 2024, arXiv:2404.07724.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.backbones import Backbone
from fewstep.coefficients import Coefficients
from fewstep.condition import Condition, Text
from fewstep.errors import InputError
from fewstep.process import Process

MAX_GUIDANCE = 1000.0
TIME_TOLERANCE = 1e-5
"""Times that are this close to an end of an interval are inside."""

Interval = tuple[float, float]
"""The lowest and highest time, from 0 (image) to 1 (noise)."""


@dataclass(frozen=True)
class Negative:
    """A prompt that takes the place of no prompt under guidance."""

    prompt: str
    text: Text
    """Encoded, one row."""


class Guided(Backbone):
    """weight·output(cond) + (1 − weight)·output(null); a weight of 1 means no guidance.

    Under a `negative` prompt, null has this prompt, and still no class. The weights sum to one, so
    the same formula holds for x0, eps and velocity, which are affine in the output. Without a
    condition, and at times outside the `interval`, the output is that of the plain backbone.
    """

    def __init__(
        self,
        backbone: Backbone,
        weight: float,
        *,
        interval: Interval | None = None,
        negative: Negative | None = None,
    ) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.weight = weight
        self.interval = interval
        self.negative = negative
        self.config = backbone.config
        self.shape = backbone.shape
        self.classes = backbone.classes
        self.text = backbone.text
        self.level_scale = backbone.level_scale

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        *,
        level_s: Tensor | None = None,
        cond: Condition | None = None,
        at: Coefficients | None = None,
    ) -> Tensor:
        """The guided output at the times of `at`, which a `Denoiser` passes.

        At one time for all rows, outside the interval, the backbone is called without guidance.
        """
        limits = self.limits
        inside = True if at is None or limits is None else _is_inside(limits, at.t, x)
        if self.weight == 1 or inside is False or not self._applies(cond):
            return self.backbone(x, level, level_s=level_s, cond=cond)
        output, worse = self._outputs(x, level, level_s, cond, at)
        guided = self.weight * output + (1 - self.weight) * worse
        return guided if inside is True else torch.where(inside, guided, output)

    def _applies(self, cond: Condition | None) -> bool:
        return cond is not None

    def _outputs(
        self,
        x: Tensor,
        level: Tensor,
        level_s: Tensor | None,
        cond: Condition | None,
        at: Coefficients | None,
    ) -> tuple[Tensor, Tensor]:
        """The conditional and unconditional output, from one call with twice the rows."""
        assert cond is not None
        both = self.backbone(
            _twice(x),
            _twice(level),
            level_s=None if level_s is None else _twice(level_s),
            cond=cond.concat(cond.null(self._negative_text(x))),
        )
        # torch.export cannot trace `chunk` or `len` for a number of rows that is not known
        rows = x.shape[0]
        return both[:rows], both[rows:]

    def _negative_text(self, x: Tensor) -> Text | None:
        if self.negative is None:
            return None
        text = self.negative.text
        return Text(text.tokens.to(x.device), text.mask.to(x.device))

    @property
    def limits(self) -> Interval | None:
        """The times at which there is guidance; None for all."""
        return self.interval

    def under(self, old: Process, new: Process) -> "Guided":
        """The same guidance under another process: the interval keeps its sigma/alpha."""
        if self.interval is None or old == new:
            return self
        interval = interval_under(self.interval, old, new)
        return Guided(self.backbone, self.weight, interval=interval, negative=self.negative)

    def with_backbone(self, backbone: Backbone) -> "Guided":
        """The same guidance of another network."""
        return Guided(backbone, self.weight, interval=self.interval, negative=self.negative)

    def features(self, x: Tensor, level: Tensor, *, cond: Condition | None = None) -> list[Tensor]:
        """The conditional features, without guidance."""
        return self.backbone.features(x, level, cond=cond)


def unguided(backbone: Backbone) -> Backbone:
    """The network inside a `Guided`; any other backbone is returned unchanged."""
    return backbone.backbone if isinstance(backbone, Guided) else backbone


def guidance_weight(backbone: Backbone) -> float:
    """The weight of guidance of either kind; 1 for a network without it."""
    return backbone.weight if isinstance(backbone, Guided) else 1.0


def guidance_interval(backbone: Backbone) -> Interval | None:
    """The lowest and highest time of guidance; None for no limits."""
    return backbone.interval if isinstance(backbone, Guided) else None


def negative_prompt(backbone: Backbone) -> str:
    """The prompt in place of no prompt under guidance; empty for none."""
    negative = backbone.negative if isinstance(backbone, Guided) else None
    return negative.prompt if negative else ""


def check_guidance(weight: float) -> None:
    """Raise InputError for a weight of guidance that is not from 0 to MAX_GUIDANCE."""
    if not 0 <= weight <= MAX_GUIDANCE:  # which NaN is not, either
        raise InputError(
            f"the weight of guidance is {weight}; it must be a finite number from 0 to "
            f"{MAX_GUIDANCE:g}"
        )


def check_interval(interval: Sequence[float] | None, weight: float) -> Interval | None:
    """The lowest and highest time of guidance; None if all times are between them.

    Raises: InputError unless 0 <= low < high <= 1, or with a weight of 1, which has no effect.
    """
    if interval is None:
        return None
    low, high = interval if len(interval) == 2 else (1.0, 0.0)
    if not 0 <= low < high <= 1:
        numbers = ", ".join(f"{number:g}" for number in interval)
        raise InputError(
            f"the interval of guidance is {numbers}; it must be two times with 0 <= low < high "
            "<= 1, from image to noise"
        )
    if weight == 1:
        raise InputError(
            "an interval has no effect without guidance: set a weight of guidance other than 1"
        )
    return None if (low, high) == (0, 1) else (low, high)


def _is_inside(limits: Interval, t: Tensor, x: Tensor) -> Tensor | bool:
    """Whether times are within limits: one answer, or one for each row of `x`, (b, 1, ...)."""
    low, high = limits[0] - TIME_TOLERANCE, limits[1] + TIME_TOLERANCE
    if t.ndim == 0:  # a number, on the CPU
        return low <= float(t) <= high
    return ((t >= low) & (t <= high)).reshape(-1, *[1] * (x.ndim - 1))


def interval_under(interval: Interval | None, old: Process, new: Process) -> Interval | None:
    """The times of another process at which sigma/alpha is the same; 0 and 1 are no limits."""
    if interval is None:
        return None
    low, high = new.time(old.ratio(torch.tensor(interval, dtype=torch.float64))).tolist()
    return (low if interval[0] > 0 else 0.0, high if interval[1] < 1 else 1.0)


def _twice(x: Tensor) -> Tensor:
    return x.repeat(2, *[1] * (x.ndim - 1))
