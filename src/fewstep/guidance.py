"""Classifier-free guidance: a wrapper around a backbone. Ho and Salimans 2022, arXiv:2207.12598."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.backbones import Backbone
from fewstep.condition import Condition, Text


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
    condition the output is that of the plain backbone.
    """

    def __init__(
        self, backbone: Backbone, weight: float, *, negative: Negative | None = None
    ) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.weight = weight
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
    ) -> Tensor:
        """The guided output, from one call of the backbone with twice the rows."""
        if cond is None or self.weight == 1:
            return self.backbone(x, level, level_s=level_s, cond=cond)
        both = self.backbone(
            _twice(x),
            _twice(level),
            level_s=None if level_s is None else _twice(level_s),
            cond=cond.concat(cond.null(self._negative_text(x))),
        )
        # torch.export cannot trace `chunk` or `len` for a number of rows that is not known
        rows = x.shape[0]
        conditional, unconditional = both[:rows], both[rows:]
        return self.weight * conditional + (1 - self.weight) * unconditional

    def _negative_text(self, x: Tensor) -> Text | None:
        if self.negative is None:
            return None
        text = self.negative.text
        return Text(text.tokens.to(x.device), text.mask.to(x.device))

    def features(self, x: Tensor, level: Tensor, *, cond: Condition | None = None) -> list[Tensor]:
        """The conditional features, without guidance."""
        return self.backbone.features(x, level, cond=cond)


def unguided(backbone: Backbone) -> Backbone:
    """The network inside a `Guided`; any other backbone is returned unchanged."""
    return backbone.backbone if isinstance(backbone, Guided) else backbone


def guidance_weight(backbone: Backbone) -> float:
    """The weight of classifier-free guidance; 1 for a network without it."""
    return backbone.weight if isinstance(backbone, Guided) else 1.0


def negative_prompt(backbone: Backbone) -> str:
    """The prompt in place of no prompt under guidance; empty for none."""
    negative = backbone.negative if isinstance(backbone, Guided) else None
    return negative.prompt if negative else ""


def _twice(x: Tensor) -> Tensor:
    return x.repeat(2, *[1] * (x.ndim - 1))
