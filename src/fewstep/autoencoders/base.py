"""`Autoencoder`: images to latents of about unit variance and back; `Decoder`: the way back alone.

Latents are normalised per channel, so that diffusion, which adds noise of unit variance, has the
same meaning for them as for images.  Rombach et al. 2022, arXiv:2112.10752.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import MaxLen
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.errors import InputError
from fewstep.files import tensor_digest
from fewstep.ranges import NONEMPTY, Channels
from fewstep.sample_spec import SampleSpec
from fewstep.tables import to_table

Shape = tuple[int, ...]
LEAST_STD = 1e-6
"""Lower limit of the standard deviation by which latents are divided: a channel may be constant."""


class AutoencoderConfig(ABC):
    """Base class of an autoencoder's settings: a frozen dataclass that builds its networks."""

    noun: ClassVar[str] = "autoencoder"
    is_pinned: ClassVar[bool] = False
    """Whether weights files contain the address and hash of the networks, not the networks."""

    def pinned_hash(self) -> str:
        """SHA-256 of the networks elsewhere; empty unless `is_pinned`."""
        return ""

    @abstractmethod
    def latent_shape(self, shape: Shape) -> tuple[int, int, int]:
        """Shape of the latents of images of `shape`.

        Raises: InputError if the settings do not fit each other or `shape`.
        """

    @abstractmethod
    def build_encoder(self, shape: Shape) -> nn.Module:
        """A network that maps images (b, *shape) in [-1, 1] to latents that are not normalised."""

    @abstractmethod
    def build_decoder(self, shape: Shape) -> nn.Module:
        """A network that maps latents that are not normalised to images (b, *shape)."""


class Decoder(nn.Module):
    """Maps latents (b, *latent_shape) of about unit variance to images (b, *shape).

    `autoencoder` is the hash of the autoencoder that it is a part of; empty while that is trained.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: AutoencoderConfig, shape: Shape, *, autoencoder: str = "") -> None:
        super().__init__()
        self.config, self.shape, self.autoencoder = config, shape, autoencoder
        self.latent_shape = config.latent_shape(shape)
        self.network: nn.Module = config.build_decoder(shape)
        size = self.latent_shape[0], 1, 1
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def forward(self, latents: Float[Tensor, "b *latent"]) -> Float[Tensor, "b *shape"]:
        """The images of `latents`, about [-1, 1].  Raises: InputError for another shape."""
        if tuple(latents.shape[1:]) != self.latent_shape:
            raise InputError(
                f"latents have shape {tuple(latents.shape)}; this decoder takes "
                f"(n, {', '.join(map(str, self.latent_shape))})"
            )
        return self.network(latents * self.std + self.mean)

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        return {
            "config": to_table(self.config),
            "shape": list(self.shape),
            "autoencoder": self.autoencoder,
        }


@dataclass(frozen=True)
class DecoderDescription:
    """What `Decoder.describe` returns."""

    config: AutoencoderConfig
    shape: Annotated[tuple[Channels, ...], NONEMPTY, MaxLen(3)]
    autoencoder: str

    def build(self) -> Decoder:
        """The decoder with untrained weights, or with those of a network elsewhere.

        Raises: InputError if that network is missing, or is another one.
        """
        SampleSpec(self.shape)  # or raises its error
        digest = self.config.pinned_hash()
        if digest not in ("", self.autoencoder):
            raise InputError(
                f"its decoder {self.config} is not the one that it was trained with (hashes "
                f"{digest[:12]} and {self.autoencoder[:12]}): restore that one"
            )
        return Decoder(self.config, self.shape, autoencoder=self.autoencoder)


class Autoencoder(nn.Module):
    """An encoder of images (b, *shape) and the decoder of its latents (b, *latent_shape).

    Initial weights come from torch's default generator.

    Raises: InputError if the settings do not fit `shape`.
    """

    def __init__(self, config: AutoencoderConfig, shape: Shape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        self.latent_shape = config.latent_shape(shape)
        self.encoder: nn.Module = config.build_encoder(shape)
        self.decoder = Decoder(config, shape)

    def encode(self, images: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *latent"]:
        """The latents of `images` in [-1, 1], with a variance of about 1 over the training set.

        Raises: InputError for images of another shape.
        """
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(
                f"images have shape {tuple(images.shape)}; this autoencoder takes "
                f"(n, {', '.join(map(str, self.shape))})"
            )
        return (self.encoder(images) - self.decoder.mean) / self.decoder.std

    def decode(self, latents: Float[Tensor, "b *latent"]) -> Float[Tensor, "b *shape"]:
        """The images of `latents`, about [-1, 1].  Raises: InputError for another shape."""
        return self.decoder(latents)

    def forward(self, images: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
        """The reconstruction of `images`."""
        return self.decode(self.encode(images))

    def set_moments(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
        """Normalise by these moments of each channel of the latents, in place."""
        self.decoder.mean.copy_(mean.view_as(self.decoder.mean))
        self.decoder.std.copy_(variance.clamp(min=LEAST_STD**2).sqrt().view_as(self.decoder.std))

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values."""
        return {"config": to_table(self.config), "shape": list(self.shape)}

    @property
    def hash(self) -> str:
        """SHA-256 of the settings and weights."""
        if self.config.is_pinned:
            return self.config.pinned_hash()
        weights = {f"encoder.{name}": value for name, value in self.encoder.state_dict().items()}
        weights |= {f"decoder.{name}": value for name, value in self.decoder.state_dict().items()}
        return tensor_digest(weights, header=repr(sorted(map(repr, self.describe().items()))))

    def frozen_decoder(self) -> Decoder:
        """The decoder with the hash of this autoencoder, in evaluation mode, without gradients."""
        self.decoder.autoencoder = self.hash
        return self.decoder.eval().requires_grad_(False)
