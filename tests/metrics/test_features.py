"""Extractors: what a row is, and that batches are an implementation detail."""

import torch

from fewstep.metrics.features import BATCH, Extractor, Pixels


class Counter(Extractor):
    """Remembers how it was called."""

    name, hash = "counter", "0"

    def __init__(self):
        self.sizes, self.grad = [], []
        self.weight = torch.ones(1, requires_grad=True)

    def features(self, images):
        self.sizes.append(len(images))
        return images.flatten(1).float() * self.weight


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
