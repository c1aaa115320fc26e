"""Raw networks, `(x, level) -> tensor`, with no diffusion inside: one architecture a file."""

from dataclasses import replace

import torch
from torch import nn

from fewstep.backbones.base import Backbone
from fewstep.backbones.circuit import CircuitConfig, CircuitNet, LatentConfig
from fewstep.backbones.mlp import MLP, MLPConfig
from fewstep.backbones.residuals import ResidualsConfig, ResidualsNet
from fewstep.backbones.unet import UNet, UNetConfig
from fewstep.errors import InputError

BackboneConfig = MLPConfig | UNetConfig | CircuitConfig | ResidualsConfig
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
        case CircuitConfig():
            return CircuitNet(config, shape=shape, classes=classes)
        case ResidualsConfig():
            return ResidualsNet(config, shape=shape, classes=classes)


def with_two_times(backbone: Backbone) -> Backbone:
    """The same network, told a destination too: at first the destination changes nothing.

    Raises: InputError for a network that knows no second time.
    """
    if isinstance(backbone.config, CircuitConfig | ResidualsConfig):
        raise InputError(f"a {backbone.config.name} cannot be a flow map: take a unet or an mlp")
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


def set_dropout(backbone: Backbone, dropout: float) -> None:
    """Change the share of activations dropped in training, in place.

    Raises: InputError for a network without dropout, or a share outside [0, 1).
    """
    if not hasattr(backbone.config, "dropout") or not 0 <= dropout < 1:
        told = f"dropout = {dropout}: give a share from 0 to below 1, to a network that has dropout"
        raise InputError(told)
    backbone.config = replace(backbone.config, dropout=dropout)
    for module in backbone.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout


__all__ = [
    "MLP",
    "Backbone",
    "BackboneConfig",
    "CircuitConfig",
    "CircuitNet",
    "LatentConfig",
    "MLPConfig",
    "ResidualsConfig",
    "ResidualsNet",
    "UNet",
    "UNetConfig",
    "build",
    "set_dropout",
    "with_two_times",
]
