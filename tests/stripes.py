"""Small pictures of two factors, and tiny autoencoders of them."""

import torch

from fewstep.autoencoders import Autoencoder
from fewstep.autoencoders.convolutional import Convolutional
from fewstep.batching import Batches, ImageStream
from fewstep.methods.autoencode import Autoencode, AutoencodeConfig
from fewstep.sample_spec import SampleSpec

SHAPE = (1, 8, 8)
TINY = Convolutional(latent_channels=2, channels=(8, 8), groups=4)


def pictures(count, seed=0):
    """Stripes, uint8 (count, 1, 8, 8), of random brightness and contrast."""
    generator = torch.Generator().manual_seed(seed)
    level, contrast = torch.rand(2, count, 1, 1, 1, generator=generator)
    stripes = torch.arange(8).remainder(2).view(1, 1, 1, 8).expand(count, 1, 8, 8)
    return (255 * (0.6 * level + 0.4 * contrast * stripes)).round().to(torch.uint8)


def autoencoder(config=TINY, shape=SHAPE, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Autoencoder(config, shape)


def method(**settings):
    return Autoencode(AutoencodeConfig(network=TINY, **settings), autoencoder())


def batches(batch=12, count=40):
    stream = ImageStream(pictures(count), None)
    return Batches({"images": stream}, SampleSpec(SHAPE), batch=batch, seed=0)
