"""Networks `net(x, level) -> tensor`, one architecture per file. They know nothing of diffusion."""

import importlib
from typing import TYPE_CHECKING, Any

from fewstep.backbones.base import (
    Backbone,
    BackboneConfig,
    build_backbone,
    check_augmentable,
    set_dropout,
    set_pace,
    with_augmentation,
    with_two_times,
    without_augmentation,
)

if TYPE_CHECKING:
    from fewstep.backbones.dit import DiT, DiTConfig
    from fewstep.backbones.edm_unet import EDMUNet, EDMUNetConfig
    from fewstep.backbones.lucidrains_unet import LucidrainsUNet, LucidrainsUNetConfig
    from fewstep.backbones.mlp import MLP, MLPConfig
    from fewstep.backbones.unet import UNet, UNetConfig

_MODULES = {
    "DiT": "dit",
    "DiTConfig": "dit",
    "EDMUNet": "edm_unet",
    "EDMUNetConfig": "edm_unet",
    "LucidrainsUNet": "lucidrains_unet",
    "LucidrainsUNetConfig": "lucidrains_unet",
    "MLP": "mlp",
    "MLPConfig": "mlp",
    "UNet": "unet",
    "UNetConfig": "unet",
}

__all__ = [
    "MLP",
    "Backbone",
    "BackboneConfig",
    "DiT",
    "DiTConfig",
    "EDMUNet",
    "EDMUNetConfig",
    "LucidrainsUNet",
    "LucidrainsUNetConfig",
    "MLPConfig",
    "UNet",
    "UNetConfig",
    "build_backbone",
    "check_augmentable",
    "set_dropout",
    "set_pace",
    "with_augmentation",
    "with_two_times",
    "without_augmentation",
]


def __getattr__(name: str) -> Any:
    """Import an architecture when it is first used, so that loading a network imports no other."""
    if name not in _MODULES:
        raise AttributeError(f"module 'fewstep.backbones' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fewstep.backbones.{_MODULES[name]}"), name)
