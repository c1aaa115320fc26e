"""Raw networks, `(x, level) -> tensor`, with no diffusion inside: one architecture a file."""

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


__all__ = ["MLP", "Backbone", "BackboneConfig", "MLPConfig", "UNet", "UNetConfig", "build"]
