"""What every raw network promises: images and levels in, a tensor like the images out."""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.plugins import name_of


class BackboneConfig(ABC):
    """Base class of an architecture's settings: a frozen dataclass that can build its network."""

    noun: ClassVar[str] = "backbone"

    @abstractmethod
    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "Backbone":
        """A network for images of `shape` in [-1, 1]; weights come from torch's default generator.

        Raises: InputError if the settings do not fit each other or `shape`.
        """


class Backbone(nn.Module, ABC):
    """A network that knows no diffusion: `output = net(x, level)`, with `level` the noise level.

    `level` and `level_s` hold one number a row, in the units the network is trained with. A
    `Denoiser` gives them their meaning and converts the output. Weights are drawn as a module is
    made, from torch's default generator, so seed it before; dropout draws from it too.
    """

    config: Any
    """The `BackboneConfig` that built it; it goes into the weights' description."""
    shape: tuple[int, ...]
    """Of one image, or one point: (3, 32, 32), or (2,)."""
    classes: int
    """How many classes the network knows; 0 for a network that takes no condition."""
    level_scale: float
    """What a logarithmic level (EDM's `ln(sigma) / 4`, about -1.55 to 1.1) is to be multiplied
    with, so that it spans a fair part of the sinusoid's range, 0 to 1000."""

    @property
    def trunks(self) -> tuple[nn.Module, ...]:
        """The networks whose calls are its evaluations: itself, unless it is asked in parts."""
        return (self,)

    def start(self, teacher: "Backbone | None") -> None:
        """Take from a teacher's network what a fresh one of this kind begins with: nothing.

        Raises: InputError where that is another network than it needs.
        """

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "b *shape"],
        level: Float[Tensor, " b"],
        *,
        level_s: Float[Tensor, " b"] | None = None,
        cond: Condition | None = None,
    ) -> Float[Tensor, "b *shape"]:
        """The raw output. `level_s` is the destination's level, for networks with two times.

        Without `level_s` a network with two times stays at `level`; without `cond` a network with
        classes is unconditional. What a network was not made for raises a `ValueError`.
        """

    @abstractmethod
    def features(
        self,
        x: Float[Tensor, "b *shape"],
        level: Float[Tensor, " b"],
        *,
        cond: Condition | None = None,
    ) -> list[Float[Tensor, "b ..."]]:
        """Activations on the way, for adversarial heads; their number and widths never change."""


def with_two_times(backbone: Backbone) -> Backbone:
    """The same network with an input for the destination, which changes nothing at first.

    Raises: InputError for an architecture whose config has no `two_times`.
    """
    if not hasattr(backbone.config, "two_times"):
        name = name_of("backbone", type(backbone.config))
        raise InputError(f"the backbone {name} cannot be a flow map: take a unet or an mlp")
    if backbone.config.two_times:
        return backbone
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = replace(backbone.config, two_times=True)
        wider = config.build(shape=backbone.shape, classes=backbone.classes)
    state = backbone.state_dict()
    wider.load_state_dict({**wider.state_dict(), **state})
    return wider.to(next(iter(state.values())).device)


def set_dropout(backbone: Backbone, dropout: float) -> None:
    """Change the share of activations dropped in training, in place.

    Raises: InputError for a network without dropout, or a share outside [0, 1).
    """
    if not hasattr(backbone.config, "dropout") or not 0 <= dropout < 1:
        raise InputError(
            f"dropout = {dropout}: give a share from 0 to below 1, to a network that has dropout"
        )
    backbone.config = replace(backbone.config, dropout=dropout)
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
