"""Raw networks, `net(x, level) -> tensor`, without any diffusion: one architecture per file."""

from dataclasses import replace

import torch
from torch import nn

from fewstep.backbones.base import Backbone, BackboneConfig
from fewstep.backbones.mlp import MLP, MLPConfig
from fewstep.backbones.unet import UNet, UNetConfig
from fewstep.errors import InputError


def build(config: BackboneConfig, *, shape: tuple[int, ...], classes: int = 0) -> Backbone:
    """Make the network that `config` describes, for images of `shape` in [-1, 1] and `classes`.

    Weights are drawn from torch's default generator. Raises InputError if the settings do not fit
    `shape`.
    """
    return config.build(shape=shape, classes=classes)


def with_two_times(backbone: Backbone) -> Backbone:
    """The same network, told a destination too: at first the destination changes nothing.

    Raises: InputError for a network that knows no second time.
    """
    if not hasattr(backbone.config, "two_times"):
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
    "MLPConfig",
    "UNet",
    "UNetConfig",
    "build",
    "set_dropout",
    "with_two_times",
]
