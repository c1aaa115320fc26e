"""The convolutional layers of three ImageNet classifiers, with the feature maps that LPIPS uses.

Layers, their order and names are torchvision's, so that its published files can be loaded without
their `classifier.*` entries. A new trunk has uninitialised weights: load them, or call `draw`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.metrics.extractors.weights import load_into, load_weights


@dataclass(frozen=True)
class _Slices:
    """Feature map i is the output of the first `ends[i]` layers and has `channels[i]` channels."""

    name: str
    ends: tuple[int, ...]
    channels: tuple[int, ...]
    smallest: int  # least height and width of an image, below which a pooling input is empty


class Trunk(nn.Module):
    """Feature maps at several depths, of images that the caller has normalised.

    `channels` are those of the maps. The weights are frozen; it is differentiable in the images.
    """

    def __init__(self, layers: list[nn.Module], slices: _Slices) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.name, self.channels, self.smallest = slices.name, slices.channels, slices.smallest
        self._ends = slices.ends
        self.requires_grad_(False)

    def feature_maps(self, images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """The activations after each slice, shallow to deep: (n, channels[i], h_i, w_i).

        Raises: InputError if the images are smaller than `smallest`.
        """
        height, width = images.shape[2:]
        if min(height, width) < self.smallest:
            raise InputError(
                f"images of {height}x{width} are too small for the {self.name} trunk, which needs "
                f"{self.smallest}x{self.smallest}; resize them first, for example with size=64"
            )
        maps: list[Tensor] = []
        for count, layer in enumerate(self.features, start=1):
            images = layer(images)
            if count in self._ends:
                maps.append(images)
        return maps

    def draw(self, generator: torch.Generator) -> None:
        """Draw random weights (He et al. 2015, arXiv:1502.01852), and set biases to 0."""
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
            else:
                nn.init.zeros_(weight)


class Fire(nn.Module):
    """SqueezeNet's block: a 1x1 convolution to few channels, then parallel 1x1 and 3x3 ones."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = _conv(channels, squeeze, 1)
        self.expand1x1 = _conv(squeeze, expand, 1)
        self.expand3x3 = _conv(squeeze, expand, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x), self.expand3x3(x)], 1).relu()


def squeezenet() -> Trunk:
    """SqueezeNet 1.1 (Iandola et al. 2016, arXiv:1602.07360): 7 maps, 0.7 M weights."""
    # pooling rounds sizes up, as in the original Caffe version
    layers: list[nn.Module] = [
        *(_conv(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    ]
    ends, channels = (2, 5, 8, 10, 11, 12, 13), (64, 128, 256, 384, 384, 512, 512)
    return Trunk(layers, _Slices("squeeze", ends, channels, smallest=17))


def alexnet() -> Trunk:
    """AlexNet in its one-tower version (Krizhevsky 2014, arXiv:1404.5997): 5 maps, 2.5 M weights.

    The last pooling layer is left out: LPIPS does not use it.
    """
    layers: list[nn.Module] = [
        *(_conv(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(_conv(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(_conv(192, 384, 3, padding=1), nn.ReLU()),
        *(_conv(384, 256, 3, padding=1), nn.ReLU()),
        *(_conv(256, 256, 3, padding=1), nn.ReLU()),
    ]
    slices = _Slices("alex", (2, 5, 8, 10, 12), (64, 192, 384, 256, 256), smallest=31)
    return Trunk(layers, slices)


def vgg16() -> Trunk:
    """VGG-16 (Simonyan & Zisserman 2014, arXiv:1409.1556): 5 maps, 14.7 M weights.

    The last pooling layer is left out: LPIPS does not use it.
    """
    layers: list[nn.Module] = []
    ends: list[int] = []
    last = 3
    for depth, channels in [(2, 64), (2, 128), (3, 256), (3, 512), (3, 512)]:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(depth):
            layers += [_conv(last, channels, 3, padding=1), nn.ReLU()]
            last = channels
        ends.append(len(layers))
    return Trunk(layers, _Slices("vgg", tuple(ends), (64, 128, 256, 512, 512), smallest=16))


TRUNKS: Mapping[str, Callable[[], Trunk]] = {
    "squeeze": squeezenet,
    "alex": alexnet,
    "vgg": vgg16,
}
TRUNK_FILES = {"squeeze": "squeezenet", "alex": "alexnet", "vgg": "vgg16"}


def load_trunk(name: str) -> Trunk:
    """The trunk called squeeze, alex or vgg, with its ImageNet weights."""
    weights = load_weights(TRUNK_FILES[name])
    features = {key: value for key, value in weights.items() if key.startswith("features.")}
    return load_into(TRUNKS[name](), features, TRUNK_FILES[name])


def _conv(channels: int, out: int, width: int, *, stride: int = 1, padding: int = 0) -> nn.Module:
    # without initial values, because drawing them takes time and advances the global random state
    return nn.utils.skip_init(nn.Conv2d, channels, out, width, stride=stride, padding=padding)
