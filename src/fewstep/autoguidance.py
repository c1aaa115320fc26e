"""Autoguidance: outputs that lead away from those of a worse network.

Karras et al. 2024, arXiv:2406.02507.
"""

import json

from torch import Tensor

from fewstep import tables
from fewstep.backbones import Backbone
from fewstep.coefficients import Coefficients
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.files import tensor_digest
from fewstep.guidance import Guided, Interval, interval_under
from fewstep.process import Process
from fewstep.sample_spec import SampleSpec


class Autoguided(Guided):
    """weight·output + (1 − weight)·output of the `weak` denoiser, both with the condition.

    `weak` is under the same process as the backbone. If it has another parametrization, its image
    and noise become the output that the backbone would have for them. At times outside its span,
    for which it was not trained, there is no guidance.
    """

    def __init__(
        self,
        backbone: Backbone,
        weight: float,
        weak: Denoiser,
        *,
        interval: Interval | None = None,
    ) -> None:
        super().__init__(backbone, weight, interval=interval)
        self.weak: Denoiser = weak

    def _applies(self, cond: Condition | None) -> bool:
        return True

    def _outputs(
        self,
        x: Tensor,
        level: Tensor,
        level_s: Tensor | None,
        cond: Condition | None,
        at: Coefficients | None,
    ) -> tuple[Tensor, Tensor]:
        """The outputs of the backbone and of the weak network."""
        assert at is not None
        output, weak = self.backbone(x, level, level_s=level_s, cond=cond), self.weak
        if weak.parametrization == at.parametrization and (
            weak.backbone.level_scale == self.level_scale
        ):
            return output, weak.backbone(x, level, cond=cond)
        own = Coefficients(at.process, weak.parametrization, at.t, at.alpha, at.sigma)
        prediction = weak(x / at.scale, own, cond=cond)
        a, b = at.target_coefficients
        return output, (a * prediction.x0 + b * prediction.eps).to(output.dtype)

    @property
    def limits(self) -> Interval | None:
        low, high = self.interval or (0.0, 1.0)
        return max(low, self.weak.span[0]), min(high, self.weak.span[1])

    def under(self, old: Process, new: Process) -> "Autoguided":
        if old == new:
            return self
        interval = interval_under(self.interval, old, new)
        return Autoguided(self.backbone, self.weight, self.weak.under(new), interval=interval)

    def with_backbone(self, backbone: Backbone) -> "Autoguided":
        return Autoguided(backbone, self.weight, self.weak, interval=self.interval)


def weak_network(backbone: Backbone) -> Denoiser | None:
    """The worse network of autoguidance; None for a network without it."""
    return backbone.weak if isinstance(backbone, Autoguided) else None


def check_weak(own: SampleSpec, weak: SampleSpec) -> None:
    """Raise InputError for a worse network that generates other samples, or from other conditions.

    `weak` describes its samples, and `own` those of the network that it guides.
    """
    start = "the network of autoguidance "
    if (own.shape, own.classes) != (weak.shape, weak.classes):
        raise InputError(
            f"{start}generates samples of shape {weak.shape} with {weak.classes} classes, and "
            f"the generator {own.shape} with {own.classes}: use one of the same data"
        )
    if difference := own.class_difference(weak):
        raise InputError(f"{start}has other classes: {difference}; use one of the same data")
    if own.text != weak.text:
        raise InputError(f"{start}reads prompts in another way: use one of the same text encoder")


def network_digest(denoiser: Denoiser) -> str:
    """SHA-256 of a denoiser's weights, process and parametrization."""
    parts = {
        "backbone": tables.to_table(denoiser.backbone.config),
        "process": tables.to_table(denoiser.process),
        "parametrization": tables.to_table(denoiser.parametrization),
    }
    header = json.dumps(parts, sort_keys=True)
    return tensor_digest(denoiser.backbone.state_dict(), header=header)
