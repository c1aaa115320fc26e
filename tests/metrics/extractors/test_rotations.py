"""The extractor for sets without labels."""

import pytest
import torch

import fewstep.metrics.extractors.classifier as classifier
from fewstep import data, metrics
from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.metrics.extractors import make_extractor
from fewstep.metrics.extractors.rotations import rotate


@pytest.fixture
def brief(monkeypatch):
    """Trainings of a few steps; returns the (images, labels) of each."""
    trainings = []
    real = classifier.train_classifier

    def train(images, labels):
        trainings.append((images, labels))
        return real(images, labels, steps=3)

    monkeypatch.setattr(classifier, "train_classifier", train)
    return trainings


def test_images_are_rotated_by_quarters(monkeypatch):
    image = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    rows, labels = rotate(image)
    assert rows[:, 0].tolist() == [[[0, 1, 2], [3, 4, 5]], [[5, 4, 3], [2, 1, 0]]]
    assert labels.tolist() == [0, 1]
    square = torch.tensor([[0, 1], [2, 3]], dtype=torch.uint8).view(1, 1, 2, 2)
    rows, labels = rotate(torch.cat([square, square]))
    assert [rows[i, 0].tolist() for i in (0, 2, 4, 6)] == [
        [[0, 1], [2, 3]], [[1, 3], [0, 2]], [[3, 2], [1, 0]], [[2, 0], [3, 1]],
    ]  # fmt: skip
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    many = torch.zeros(10_001, 1, 1, 1, dtype=torch.uint8)
    assert len(rotate(many)[0]) == 40_000
    large = torch.empty(900, 3, 512, 512, dtype=torch.uint8, device="meta")
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n, device="meta"))
    assert len(rotate(large)[0]) == 4 * 341


def test_it_is_trained_once_for_a_set_and_has_no_logits(brief, tmp_path):
    images = torch.randint(0, 256, (9, 3, 6, 6), dtype=torch.uint8)
    first = make_extractor("rotations", ImageSet("a", images), cache=tmp_path)
    again = make_extractor("rotations", ImageSet("b", images), cache=tmp_path)
    assert len(brief) == 1 and len(brief[0][0]) == 36
    assert first.name == "rotations" and first.hash == again.hash and not first.classifies
    assert torch.equal(first(images), again(images)) and first(images).shape == (9, 64)
    (output,) = first.iter_outputs(images)
    assert output.logits is None
    # the classifier of the same images is another network
    labels = torch.arange(9) % 4
    other = make_extractor("classifier", ImageSet("a", images, labels), cache=tmp_path)
    assert len(brief) == 2 and other.hash != first.hash


def test_what_it_cannot_do_is_refused():
    images = ImageSet("a", torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(InputError, match="rotations does not resize images"):
        make_extractor("rotations", images, resize="tf1-bilinear")
    with pytest.raises(InputError, match="the extractor rotations is trained on images"):
        make_extractor("rotations")


def test_worse_images_are_further_away(monkeypatch):
    real_training = classifier.train_classifier
    monkeypatch.setattr(
        classifier, "train_classifier", lambda *images: real_training(*images, steps=60)
    )
    digits = data.load("digits")
    extractor = make_extractor("rotations", digits)
    real = metrics.Moments(64)
    real.update(extractor(digits.images[:900]))

    def distance(images):
        moments = metrics.Moments(64)
        moments.update(extractor(images))
        return metrics.frechet_distance(moments, real)

    rest = digits.images[900:]
    noise = 60 * torch.randn(rest.shape, generator=torch.Generator().manual_seed(0))
    noisy, noisier = ((rest + x).clamp(0, 255).to(torch.uint8) for x in (noise, 2 * noise))
    distances = [distance(rest), distance(noisy), distance(noisier)]
    assert 1.5 * distances[0] < distances[1] < distances[2] / 1.5, distances
