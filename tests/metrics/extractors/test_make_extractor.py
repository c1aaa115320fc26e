"""Extractors by name, and what is said when there is none."""

import pytest
import torch

from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.metrics.extractors import make_extractor
from fewstep.metrics.extractors.classifier import train_classifier
from fewstep.metrics.extractors.resnet import ResNet56

IMAGES = torch.arange(4 * 64, dtype=torch.uint8).view(4, 1, 8, 8)
LABELS = torch.tensor([0, 1, 2, 1])
REAL = ImageSet("toys", IMAGES, LABELS)


def test_each_name_makes_the_extractor_that_carries_it(monkeypatch):
    monkeypatch.setattr(
        "fewstep.metrics.extractors.classifier.train_classifier",
        lambda images, labels: train_classifier(images, labels, steps=4),
    )
    hashes = set()
    for name in ("classifier", "pixels"):
        extractor = make_extractor(name, REAL)
        assert extractor.name == name
        hashes.add(extractor.hash)
        assert len(extractor(IMAGES)) == 4
    assert len(hashes) == 2


def test_an_unknown_name_is_answered_with_the_list():
    message = "unknown extractor 'inceptoin'; did you mean inception.*one of classifier, pixels, "
    with pytest.raises(InputError, match=message):
        make_extractor("inceptoin", REAL)


def test_a_resize_where_there_is_none_and_odd_channels_are_refused():
    for name in ("pixels", "classifier"):
        with pytest.raises(InputError, match=f"{name} does not resize images"):
            make_extractor(name, REAL, resize="tf1-bilinear")
    with pytest.raises(InputError, match="images of 1 or 3 channels, not 2"):
        make_extractor("squeezenet", ImageSet("toys", IMAGES.expand(-1, 2, -1, -1)))


@pytest.mark.parametrize("labels", [None, torch.zeros(4, dtype=torch.int64)])
def test_a_set_without_classes_is_sent_to_pixels(labels):
    with pytest.raises(InputError, match="use another extractor, such as pixels"):
        make_extractor("classifier", ImageSet("toys", IMAGES, labels))
    with pytest.raises(InputError, match="classifier is trained on images"):
        make_extractor("classifier")


def test_pixels_too_many_for_a_covariance_are_refused():
    large = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(InputError, match="have 12,288 pixels"):
        make_extractor("pixels", ImageSet("large", large))


def test_resnet_knows_the_classes_of_cifar10_alone(monkeypatch):
    state = ResNet56().state_dict()
    monkeypatch.setattr("fewstep.metrics.extractors.resnet.load_weights", lambda name: state)
    classifies = [
        make_extractor("resnet56-cifar10", ImageSet(name, IMAGES, LABELS)).classifies
        for name in ("cifar10", "digits")
    ]
    assert classifies == [True, False]
