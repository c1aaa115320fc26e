"""A small convolutional autoencoder, fast enough to be trained on a CPU.

The first layer joins squares of pixels, so that no layer computes at the images' full resolution.
"""

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fewstep.autoencoders.base import AutoencoderConfig, Shape
from fewstep.backbones.attention import channels_last_on_cpu
from fewstep.backbones.blocks import Images, Norm, Upsample
from fewstep.errors import InputError
from fewstep.ranges import NONEMPTY, Channels, Depth


@dataclass(frozen=True)
class Convolutional(AutoencoderConfig):
    """Residual convolutions, with images halved between the entries of `channels`."""

    latent_channels: Channels = 8
    """Channels of the latents."""
    patch: Channels = 2
    """Side in pixels of the squares that the first layer joins."""
    channels: Annotated[tuple[Channels, ...], NONEMPTY] = (48, 96)
    """Channels at each size. The first size is the image's divided by `patch`, and each next one is
    half as large."""
    layers: Depth = 1
    """Residual layers per size in the encoder; the decoder has one more."""
    groups: Channels = 8
    """Groups of the normalisation; must divide every number of channels."""

    def latent_shape(self, shape: Shape) -> tuple[int, int, int]:
        factor = self.patch * 2 ** (len(self.channels) - 1)
        if len(shape) != 3 or any(side % factor for side in shape[1:]):
            raise InputError(
                f"an autoencoder with patch = {self.patch} and {len(self.channels)} entries of "
                f"channels needs images whose sides are multiples of {factor}, not shape "
                f"{tuple(shape)}"
            )
        if any(width % self.groups for width in self.channels):
            raise InputError(
                f"groups = {self.groups} does not divide every one of channels = "
                f"{list(self.channels)}: choose a common divisor"
            )
        return self.latent_channels, shape[1] // factor, shape[2] // factor

    def build_encoder(self, shape: Shape) -> nn.Module:
        self.latent_shape(shape)
        return Encoder(self, shape[0])

    def build_decoder(self, shape: Shape) -> nn.Module:
        self.latent_shape(shape)
        return ConvolutionalDecoder(self, shape[0])


class Residual(nn.Module):
    """Two convolutions after normalisations, added to the input; initially they add nothing."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = Norm(groups, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = Norm(groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Images) -> Images:
        hidden = self.conv1(functional.silu(self.norm1(x)))
        return x + self.conv2(functional.silu(self.norm2(hidden)))


class Encoder(nn.Module):
    """Images (b, c, h, w) to latents that are not normalised."""

    def __init__(self, config: Convolutional, colours: int) -> None:
        super().__init__()
        widths = config.channels
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(config.patch),
            nn.Conv2d(colours * config.patch**2, widths[0], 3, padding=1),
        ]
        for i, width in enumerate(widths):
            if i:
                layers.append(nn.Conv2d(widths[i - 1], width, 3, stride=2, padding=1))
            layers += [Residual(width, config.groups) for _ in range(config.layers)]
        layers += [Norm(config.groups, widths[-1]), nn.SiLU()]
        layers.append(nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Images) -> Float[Tensor, "b _ _ _"]:
        return self.layers(channels_last_on_cpu(images)).contiguous()


class ConvolutionalDecoder(nn.Module):
    """Latents that are not normalised to images (b, c, h, w)."""

    def __init__(self, config: Convolutional, colours: int) -> None:
        super().__init__()
        widths = config.channels[::-1]
        layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i:
                layers.append(Upsample(widths[i - 1], width))
            layers += [Residual(width, config.groups) for _ in range(config.layers + 1)]
        layers += [Norm(config.groups, widths[-1]), nn.SiLU()]
        layers.append(nn.Conv2d(widths[-1], colours * config.patch**2, 3, padding=1))
        layers.append(nn.PixelShuffle(config.patch))
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Float[Tensor, "b _ _ _"]) -> Images:
        return self.layers(channels_last_on_cpu(latents)).contiguous()
