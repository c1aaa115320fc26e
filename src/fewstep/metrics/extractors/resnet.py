"""ResNet-56 for CIFAR-10: a published classifier small enough for a CPU."""

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.metrics.extractors.base import ExtractorOutput
from fewstep.metrics.extractors.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PretrainedExtractor,
)
from fewstep.metrics.extractors.weights import load_into, load_weights


class ResNet56Cifar10(PretrainedExtractor):
    """64 features, and logits for CIFAR-10's 10 classes."""

    name = "resnet56-cifar10"
    size = 32
    standard_resize = "clean-bicubic"
    class_set = "cifar10"

    @classmethod
    def load_network(cls) -> nn.Module:
        return load_into(ResNet56(), load_weights(cls.name), cls.name)


class Block(nn.Module):
    """relu(F(x) + shortcut(x)), where F is two 3x3 convolutions with batch norm.

    If the number of channels changes, the shortcut has no weights ("option A"): it takes every
    second row and column of x and adds channels of zeros before and after.
    """

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.stride, self.padding = (1 if channels == out else 2), (out - channels) // 2
        self.conv1, self.bn1 = _conv(channels, out, stride=self.stride), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = _conv(out, out), nn.BatchNorm2d(out)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k i j"]:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return (inner + F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))).relu()


class ResNet56(nn.Module):
    """ResNet-56 (He et al. 2015, arXiv:1512.03385, section 4.2), 0.85 M weights.

    The names of its weights are those of github.com/akamaster/pytorch_resnet_cifar10, and its
    weights must be loaded from that file. Images are in [0, 255]; they are normalised with
    ImageNet's moments, as in that training. The weights take no gradient, and `train()` leaves
    batch norm in evaluation mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(3, 16), nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16), _stage(16, 32), _stage(32, 64)
        self.linear = nn.utils.skip_init(nn.Linear, 64, 10)
        for name, moment in [("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)]:
            self.register_buffer(name, torch.tensor(moment).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "ResNet56":
        """Stay in evaluation mode, even if the module that contains it is set to training mode."""
        super().train(False)
        return self

    def feature_maps(self, images: Num[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Activations after the stem and the three stages, with 16, 16, 32 and 64 channels."""
        x = (images.to(self.mean.dtype) / 255 - self.mean) / self.std
        maps = [self.bn1(self.conv1(x)).relu()]
        for stage in (self.layer1, self.layer2, self.layer3):
            maps.append(stage(maps[-1]))
        return maps

    def forward(self, images: Num[Tensor, "n 3 h w"]) -> ExtractorOutput:
        """Features and logits of images in [0, 255]."""
        features = self.feature_maps(images)[-1].mean((2, 3))
        return ExtractorOutput(features, self.linear(features))


def _stage(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(Block(channels, out), *(Block(out, out) for _ in range(8)))


def _conv(channels: int, out: int, *, stride: int = 1) -> nn.Module:
    # without initial values, because drawing them takes time and advances the global random state
    return nn.utils.skip_init(nn.Conv2d, channels, out, 3, stride=stride, padding=1, bias=False)
