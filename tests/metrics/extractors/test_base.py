"""Extractors: what a row is, and that batches are an implementation detail."""

import torch

from fewstep.metrics.extractors.base import BATCH, Extractor, ExtractorOutput
from fewstep.metrics.extractors.pixels import Pixels
from fewstep.metrics.extractors.pretrained import as_colour
from fewstep.metrics.extractors.weights import weights_digest


class Counter(Extractor):
    """Remembers how it was called."""

    name, hash = "counter", "0"

    def __init__(self):
        self.sizes = []
        self.weight = torch.ones(1, requires_grad=True)

    def extract(self, images):
        self.sizes.append(len(images))
        return ExtractorOutput(images.flatten(1) * self.weight)


def test_pixels_are_the_image_in_zero_one():
    images = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    assert torch.equal(Pixels()(images), torch.tensor([[0, 1, 0.2, 0.4]]))


def test_many_images_go_in_batches_and_come_back_in_order_without_gradient():
    count = 2 * BATCH + 3
    images = (torch.arange(count) % 256).to(torch.uint8).view(count, 1, 1, 1)
    extractor = Counter()
    features = extractor(images)
    assert extractor.sizes == [BATCH, BATCH, 3]
    assert torch.equal(features[:, 0], images.flatten().float())
    assert not features.requires_grad
    # a loss asks one batch itself, and gets the gradient
    assert extractor.extract(images.float()).features.requires_grad
    assert extractor.feature_maps(images.float())[0].shape == (count, 1, 1, 1)


def test_grey_becomes_three_equal_channels_and_colour_stays():
    grey, colour = torch.rand(2, 1, 4, 4), torch.rand(2, 3, 4, 4)
    assert torch.equal(as_colour(grey), torch.cat([grey] * 3, 1))
    assert as_colour(colour) is colour


def test_a_digest_follows_weights_and_what_is_told():
    layer = torch.nn.Linear(2, 2)
    first = weights_digest(layer, "a")
    assert first == weights_digest(layer, "a") != weights_digest(layer, "b")
    layer.bias.data[0] += 1
    assert weights_digest(layer, "a") != first
