"""Classifier-free guidance, around a backbone.  Ho and Salimans 2022, arXiv:2207.12598."""

from torch import Tensor

from fewstep.backbones import Backbone
from fewstep.condition import Condition


class Guided(Backbone):
    """weight·output(cond) + (1 − weight)·output(none); a weight of 1 means no guidance.

    The weights sum to one, so they commute with the affine map from output to x0, eps or velocity:
    guiding raw outputs guides all of them. Without a condition there is nothing to guide.
    """

    def __init__(self, backbone: Backbone, weight: float) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.weight = weight
        self.config = backbone.config
        self.shape = backbone.shape
        self.classes = backbone.classes
        self.level_scale = backbone.level_scale

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        *,
        level_s: Tensor | None = None,
        cond: Condition | None = None,
    ) -> Tensor:
        """The guided output; both halves in one call of the backbone."""
        if cond is None or self.weight == 1:
            return self.backbone(x, level, level_s=level_s, cond=cond)
        both = self.backbone(
            _twice(x),
            _twice(level),
            level_s=None if level_s is None else _twice(level_s),
            cond=cond.concat(cond.null()),
        )
        asked, free = both.chunk(2)
        return self.weight * asked + (1 - self.weight) * free

    def features(self, x: Tensor, level: Tensor, *, cond: Condition | None = None) -> list[Tensor]:
        """The conditional features: guidance speaks of outputs only."""
        return self.backbone.features(x, level, cond=cond)


def unguided(backbone: Backbone) -> Backbone:
    """The network itself, where it may be wrapped in guidance."""
    return backbone.backbone if isinstance(backbone, Guided) else backbone


def _twice(x: Tensor) -> Tensor:
    return x.repeat(2, *[1] * (x.ndim - 1))
