"""Train an autoencoder whose latents diffusion can generate.

    z = (encoder(x) − mean)/std        loss = d(decoder(z + noise·eps), x)

Mean and standard deviation are those of each channel over the recent batches, so that z has about
unit variance. The noise makes the decoder smooth: latents that a generator misses by a little give
almost the same image. It is an alternative to the KL term of Rombach et al. 2022, arXiv:2112.10752,
and bounds how much a latent can say of an image in the same way.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep import distributed
from fewstep.autoencoders import Autoencoder, AutoencoderConfig
from fewstep.autoencoders.convolutional import Convolutional
from fewstep.losses import Distance, SquaredError, squared_error
from fewstep.methods.batch import Batch
from fewstep.methods.objective import Loss, Objective, Turn
from fewstep.ranges import NonNegative
from fewstep.tables import check_fields

SHARE = 0.02
"""Share of the latest batch in the mean and variance of the latents."""


@dataclass(frozen=True)
class AutoencodeConfig:
    """Settings of `Autoencode`."""

    network: AutoencoderConfig = field(default_factory=Convolutional)
    """Architecture and its settings: convolutional."""
    loss: Distance = field(default_factory=SquaredError)
    """Distance between an image and its reconstruction: `mse`, `l1`, `pseudo-huber`, `lpips` or
    `features`, of which the last two have a setting `mse` too."""
    noise: NonNegative = 0.1
    """Standard deviation of the noise on latents, relative to theirs."""


class Autoencode(Objective[AutoencodeConfig]):
    """Train an encoder of images and the decoder of its latents together."""

    reads = frozenset({"images"})

    moments: Tensor
    updates: Tensor

    def __init__(self, config: AutoencodeConfig, autoencoder: Autoencoder) -> None:
        super().__init__()
        check_fields(config, "method")
        self.config = config
        self.student = autoencoder
        channels = autoencoder.latent_shape[0]
        self.register_buffer("moments", torch.zeros(2, channels))
        self.register_buffer("updates", torch.zeros(()))
        self._sums: list[Tensor] = []

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {"student": self.student}

    @property
    def network(self) -> Autoencoder:
        return self.student

    def turns(self, step: int) -> Iterator[Turn]:
        self._sums = []
        yield Turn("student", self.student_loss)
        if self._sums:
            self._normalise(distributed.sum_numbers(torch.stack(self._sums).sum(0)))

    def student_loss(self, batch: Batch) -> Loss:
        images = batch.images.x0
        latents, decoder = self.student.encoder(images), self.student.decoder
        self._sums.append(channel_moments(latents.detach()) * (batch.rows / batch.total))
        latents = (latents - decoder.mean) / decoder.std
        images_again = decoder(latents + self.config.noise * batch.randn_like(latents))
        error = squared_error(images_again.detach(), images).mean()
        return Loss(self.config.loss(images_again, images).mean(), {"mse": error})

    @torch.no_grad()
    def _normalise(self, moments: Tensor) -> None:
        """Update the mean and variance of the latents by those of one global batch."""
        share = torch.clamp(1 / (self.updates + 1), min=SHARE)
        moments = self.moments.lerp(moments, share)
        # a batch with NaN, whose update of the weights is left out
        is_finite = moments.isfinite().all()
        self.moments.copy_(torch.where(is_finite, moments, self.moments))
        self.updates += is_finite
        mean, square = self.moments
        self.student.set_moments(mean, square - mean.square())

    def result(self) -> Autoencoder:
        return self.student


def channel_moments(latents: Tensor) -> Tensor:
    """Mean and mean square (2, c) of each channel of latents (b, c, h, w)."""
    return torch.stack([latents.mean((0, 2, 3)), latents.square().mean((0, 2, 3))])
