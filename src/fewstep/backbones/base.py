"""Base classes of networks and their settings."""

from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import replace
from inspect import signature
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.condition import Condition, TextInput
from fewstep.errors import InputError
from fewstep.plugins import name_of


class BackboneConfig(ABC):
    """Base class of an architecture's settings: a frozen dataclass that builds its network."""

    noun: ClassVar[str] = "backbone"

    @abstractmethod
    def build(self, *, shape: tuple[int, ...], classes: int = 0) -> "Backbone":
        """Build a network for images of `shape` in [-1, 1].

        An architecture that reads prompts takes a third argument, `text: TextInput | None = None`.
        Initial weights come from torch's default generator.

        Raises: InputError if the settings do not fit each other or `shape`.
        """


class Backbone(nn.Module, ABC):
    """Base class of networks.

    `net(x, level)` maps a batch (b, c, h, w), or (b, d), and one noise level per row to an output
    of the same shape; `Denoiser` gives both their meaning. Initial weights and dropout masks are
    drawn from torch's default generator: seed it first.
    """

    config: Any
    """The `BackboneConfig` that built the network. It is saved in weights files."""
    shape: tuple[int, ...]
    """Shape of one sample: (3, 32, 32) for images, or (2,) for points."""
    classes: int
    """Number of classes; 0 for a network without classes."""
    text: TextInput | None = None
    """The prompts that the network was built for; None for a network without text."""
    level_scale: float
    """Factor for logarithmic levels (EDM's `ln(sigma) / 4`, about -1.55 to 1.1). It makes them span
    a large part of the embedding's range, 0 to 1000."""

    @property
    def trunks(self) -> tuple[nn.Module, ...]:
        """The modules whose calls count as network evaluations: the network, or its large parts."""
        return (self,)

    def load_teacher(self, teacher: "Backbone | None") -> None:
        """Initialise weights from the teacher's network. By default nothing is copied.

        Raises: InputError if the network needs a teacher's weights and these do not fit.
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
        """The raw output, which `Denoiser` interprets.

        `level_s` is the level of the destination, for networks with two times; by default it is
        `level`. Without `cond` the output is unconditional.

        Raises: ValueError for a `level_s` or `cond` that the network was not built for.
        """

    @abstractmethod
    def features(
        self,
        x: Float[Tensor, "b *shape"],
        level: Float[Tensor, " b"],
        *,
        cond: Condition | None = None,
    ) -> list[Float[Tensor, "b ..."]]:
        """Intermediate activations, for adversarial heads. Their number and channels are fixed."""


def build_backbone(
    config: BackboneConfig, *, shape: tuple[int, ...], classes: int, text: TextInput | None
) -> Backbone:
    """Build the network of these settings, for prompts if there is `text`.

    Raises: InputError as `config.build`, or for prompts and an architecture that reads none.
    """
    if text is None:
        return config.build(shape=shape, classes=classes)
    build: Any = config.build
    if "text" not in signature(build).parameters:
        name = name_of("backbone", type(config))
        raise InputError(f"the backbone {name} reads no prompts: use a unet or a dit")
    return build(shape=shape, classes=classes, text=text)


def with_two_times(backbone: Backbone) -> Backbone:
    """The network with a second input, the level of the destination, which initially has no effect.

    Its weights are copied. A network that has this input is returned unchanged.

    Raises: InputError for an architecture whose config has no `two_times`.
    """
    if not hasattr(backbone.config, "two_times"):
        name = name_of("backbone", type(backbone.config))
        raise InputError(f"the backbone {name} cannot be a flow map: use a unet, a dit or an mlp")
    return _with_input(backbone, "two_times")


def with_augmentation(backbone: Backbone) -> Backbone:
    """The network with an input for labels of augmentation, which initially has no effect.

    Its weights are copied. A network that has this input is returned unchanged.

    Raises: InputError for an architecture whose config has no `augmented`.
    """
    check_augmentable(backbone.config)
    network = _with_input(backbone, "augmented")
    if network is not backbone:
        nn.init.zeros_(network.get_parameter("augment_embedding.weight"))
    return network


def without_augmentation(backbone: Backbone) -> Backbone:
    """The same network, or a copy of its weights without the input for labels of augmentation.

    Both have the same output where these labels are 0, as they are in samples.
    """
    if not getattr(backbone.config, "augmented", False):
        return backbone
    network = deepcopy(backbone)
    network.config = replace(backbone.config, augmented=False)
    network.register_module("augment_embedding", None)
    return network


def check_augmentable(config: Any) -> None:
    """Raise InputError for settings of a network that cannot take labels of augmentation."""
    if not hasattr(config, "augmented"):
        raise InputError(
            f"data.augment needs a network that takes labels of the augmentation, which "
            f"{name_of('backbone', type(config))} does not: set data.augment=0, or use a unet, "
            "an edm-unet or a dit"
        )


def _with_input(backbone: Backbone, field: str) -> Backbone:
    """The network with the input that the boolean `field` of its config adds."""
    if getattr(backbone.config, field):
        return backbone
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = replace(backbone.config, **{field: True})
        network = build_backbone(
            config, shape=backbone.shape, classes=backbone.classes, text=backbone.text
        )
    state = backbone.state_dict()
    network.load_state_dict({**network.state_dict(), **state})
    return network.to(next(iter(state.values())).device)


def set_pace(backbone: Backbone, pace: float) -> None:
    """Set the pace of the level's embedding where the network's settings leave it open, in place.

    Networks with a pace of their own, or without that setting, stay as they are.
    """
    for module in backbone.modules():
        if isinstance(module, Backbone):
            module.config = _with_pace(module.config, pace)
        sinusoid: Any = getattr(module, "sinusoid", None)
        if getattr(sinusoid, "pace", pace) is not None:
            continue
        if isinstance(sinusoid, nn.Module):
            vars(sinusoid)["pace"] = pace
        else:
            vars(module)["sinusoid"] = replace(sinusoid, pace=pace)


def _with_pace(config: Any, pace: float) -> Any:
    """The settings with `pace` where it is None, also in settings of inner networks."""
    if not isinstance(config, BackboneConfig):
        return config
    changes = {
        name: pace if name == "pace" else _with_pace(value, pace)
        for name, value in vars(config).items()
        if isinstance(value, BackboneConfig) or (name == "pace" and value is None)
    }
    return replace(config, **changes) if changes else config  # pyright: ignore[reportArgumentType]


def set_dropout(backbone: Backbone, dropout: float) -> None:
    """Change the dropout probability of a network, in place.

    Raises: InputError for a probability outside [0, 1), or above 0 for a network without dropout.
    """
    if not 0 <= dropout < 1:
        raise InputError(f"dropout is {dropout}; it must be from 0 to below 1")
    if hasattr(backbone.config, "dropout"):
        backbone.config = replace(backbone.config, dropout=dropout)
    elif dropout:
        raise InputError(f"dropout is {dropout}, but this network has no dropout: set it to 0")
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
