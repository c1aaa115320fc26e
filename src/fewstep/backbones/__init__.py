"""Raw networks, `(x, level) -> tensor`, with no diffusion inside: one architecture a file."""

from dataclasses import replace

import torch

from fewstep.backbones.base import Backbone
from fewstep.backbones.mlp import MLP, MLPConfig
from fewstep.backbones.unet import UNet, UNetConfig

BackboneConfig = MLPConfig | UNetConfig
"""Any architecture's settings; the field `name` tells them apart in a recipe."""


def build(config: BackboneConfig, *, shape: tuple[int, ...], classes: int = 0) -> Backbone:
    """Make the network that `config` describes, for images of `shape` in [-1, 1] and `classes`.

    Weights come from torch's default generator. Raises `InputError` where the parts do not fit.
    """
    match config:
        case MLPConfig():
            return MLP(config, shape=shape, classes=classes)
        case UNetConfig():
            return UNet(config, shape=shape, classes=classes)


def with_two_times(backbone: Backbone) -> Backbone:
    """The same network, told a destination too: at first the destination changes nothing."""
    if backbone.config.two_times:
        return backbone
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wider = build(
            replace(backbone.config, two_times=True),
            shape=backbone.shape,
            classes=backbone.classes,
        )
    state = backbone.state_dict()
    wider.load_state_dict({**wider.state_dict(), **state})
    return wider.to(next(iter(state.values())).device)


__all__ = [
    "MLP",
    "Backbone",
    "BackboneConfig",
    "MLPConfig",
    "UNet",
    "UNetConfig",
    "build",
    "with_two_times",
]
