"""Extractors by name, and what is said when there is none."""

import pytest
import torch

from fewstep.errors import InputError
from fewstep.metrics.classifier import train_classifier
from fewstep.metrics.extractors import make_extractor
from fewstep.metrics.resnet import ResNet56

IMAGES = torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 1])


def test_each_name_makes_the_extractor_that_carries_it(monkeypatch):
    monkeypatch.setattr(
        "fewstep.metrics.classifier.train_classifier",
        lambda images, labels: train_classifier(images, labels, steps=4),
    )
    hashes = set()
    for name in ("classifier", "pixels"):
        made = make_extractor(name, images=IMAGES, labels=LABELS, fingerprint="a", cache=None)
        assert made.name == name
        hashes.add(made.hash)
        assert len(made(IMAGES)) == 4
    assert len(hashes) == 2


def test_an_unknown_name_is_answered_with_the_list():
    told = "'inceptoin'; did you mean inception.*choose one of: classifier, pixels, inception"
    with pytest.raises(InputError, match=told):
        make_extractor("inceptoin", images=IMAGES, labels=LABELS, fingerprint="a", cache=None)


def test_a_resize_where_there_is_none_and_odd_channels_are_refused():
    told = {"labels": LABELS, "fingerprint": "a", "cache": None}
    with pytest.raises(InputError, match="pixels takes images as they are"):
        make_extractor("pixels", resize="tf1-bilinear", images=IMAGES, **told)
    with pytest.raises(InputError, match="grey or colour images, not 2 channels"):
        make_extractor("squeezenet", images=IMAGES.expand(-1, 2, -1, -1), **told)


@pytest.mark.parametrize("labels", [None, torch.zeros(4, dtype=torch.int64)])
def test_a_set_without_classes_is_sent_to_pixels(labels):
    with pytest.raises(InputError, match='use the extractor "pixels"'):
        make_extractor("classifier", images=IMAGES, labels=labels, fingerprint="a", cache=None)


def test_pixels_too_many_for_a_covariance_are_refused():
    large = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(InputError, match="are 12,288 features"):
        make_extractor("pixels", images=large, labels=None, fingerprint="a", cache=None)


def test_resnet_knows_the_classes_of_cifar10_alone(monkeypatch):
    monkeypatch.setattr("fewstep.metrics.networks.weights", lambda name: ResNet56().state_dict())
    told = {"images": IMAGES, "labels": LABELS, "fingerprint": "a", "cache": None}
    knows = [
        make_extractor("resnet56-cifar10", set_name=name, **told).classifies
        for name in ("cifar10", "digits")
    ]
    assert knows == [True, False]
