"""The classifier: accurate on held-out digits, reproducible, and kept across processes."""

import copy
import gzip
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.datasets import load_digits

import fewstep.metrics.extractors.classifier as module
from damage import unnoticed
from fewstep.errors import InputError
from fewstep.metrics.distances.frechet import Moments, frechet_distance
from fewstep.metrics.extractors.classifier import (
    classifier_file,
    classifier_for,
    read_classifier,
    train_classifier,
)
from fewstep.tensor_file import read_tensor_file, write_tensor_file


@pytest.fixture(scope="module")
def digits():
    raw = load_digits()
    images = torch.from_numpy((raw.images * 255 / 16).round().astype(np.uint8))[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.from_numpy(raw.target).long()[order]


@pytest.fixture(scope="module")
def trained(digits):
    images, labels = digits
    return train_classifier(images[:1400], labels[:1400])


def classes(classifier, images):
    return torch.cat([seen.logits.argmax(1) for seen in classifier.iter_outputs(images)])


def accuracy(classifier, images, labels):
    return (classes(classifier, images) == labels).double().mean().item()


def moments(classifier, images):
    result = Moments(64)
    result.update(classifier(images))
    return result


def toys(shape, count=200, seed=0):
    """Noise whose brightness tells its class."""
    labels = torch.arange(count) % 3
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 80, (count, *shape), generator=generator)
    return (noise + 80 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels


def test_held_out_digits_are_told_apart(digits, trained):
    images, labels = digits
    assert accuracy(trained, images[1400:], labels[1400:]) >= 0.98


def test_features_are_standardised_and_distances_grow_with_damage(digits, trained):
    images, labels = digits
    train = images[:1400]
    reference = moments(trained, train)
    assert reference.mean.abs().max() < 0.3
    assert reference.covariance.trace().item() == pytest.approx(64, rel=0.15)
    noise = torch.randn(train.shape, generator=torch.Generator().manual_seed(0))

    def distance(damaged):
        return frechet_distance(reference, moments(trained, damaged))

    noisy = [(train + level * noise).clamp(0, 255).to(torch.uint8) for level in (0, 16, 32, 64)]
    scores = [distance(part) for part in noisy]
    assert scores == sorted(scores)
    held_out = distance(images[1400:])
    assert held_out < distance(images[1400:][labels[1400:] != 3])
    assert held_out < scores[-1]


def test_features_do_not_depend_on_the_batch(digits, trained):
    images = digits[0][:300]
    together = trained(images)
    apart = torch.cat([trained(part) for part in images.split(7)])
    assert torch.allclose(together, apart, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (1, 5, 17), (3, 48, 40)])
def test_equal_training_gives_an_equal_hash_whatever_the_global_state(shape):
    images, labels = toys(shape)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_classifier(images, labels, steps=12)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = train_classifier(images, labels, steps=12)
    other = train_classifier(images, labels, seed=1, steps=12)
    assert first.hash == again.hash != other.hash
    assert torch.equal(first(images), again(images))
    assert first(images).shape == (len(images), 64)


@pytest.mark.skipif(torch.get_num_threads() != 1, reason="the suite's workers have one thread")
def test_the_hash_does_not_depend_on_the_number_of_threads():
    images, labels = toys((1, 16, 16), count=600)
    alone = train_classifier(images, labels, steps=12)
    torch.set_num_threads(2)
    try:
        assert train_classifier(images, labels, steps=12).hash == alone.hash
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_kept_file_is_read_by_its_path(tmp_path, trainings):
    images, labels = toys((1, 8, 8))
    kept = classifier_for(images, labels, fingerprint="a", cache=tmp_path)
    path = classifier_file("a", tmp_path)
    assert read_classifier(path).hash == kept.hash
    for damage in (b"", path.read_bytes()[:-4]):
        path.write_bytes(damage)
        with pytest.raises(InputError, match="holds no classifier|is damaged"):
            read_classifier(path)
    with pytest.raises(InputError, match="holds no classifier"):
        read_classifier(tmp_path / "none.safetensors")


def test_a_flipped_byte_is_found(tmp_path, trainings):
    images, labels = toys((1, 8, 8))
    classifier_for(images, labels, fingerprint="a", cache=tmp_path)
    path = classifier_file("a", tmp_path)
    size = path.stat().st_size
    positions = [*range(16), *random.Random(0).sample(range(size), 60), size - 1]
    assert unnoticed(path, lambda: read_classifier(path).hash, positions, (0x01, 0x20)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", [1, 8]), ("shape", [1, 2**40, 8]), ("shape", [1, -8, 8]), ("shape", 3),
     ("shape", [1.0, 8, 8]), ("shape", [60_000, 8, 8]), ("classes", 10**12), ("classes", 4),
     ("fingerprint", 3), ("recipe", 0)],
)  # fmt: skip
def test_a_classifier_of_another_form_is_refused(tmp_path, trainings, key, value):
    images, labels = toys((1, 8, 8))
    classifier_for(images, labels, fingerprint="a", cache=tmp_path)
    path = classifier_file("a", tmp_path)
    tensors, note = read_tensor_file(path)
    write_tensor_file(path, tensors, {**note, key: value})
    with pytest.raises(InputError, match="holds no classifier|of another version"):
        read_classifier(path)


def test_maps_are_the_activations_that_lead_to_the_features(digits, trained):
    images = digits[0][:5].float()
    maps = trained.feature_maps(images)
    rest = trained.network.trunk[-3:]  # flatten, linear, norm
    assert torch.allclose(rest(maps[-1]), trained.extract(images).features, atol=1e-5)
    assert all(bool((m >= 0).all()) for m in maps) and len(maps) == 2


def test_the_hash_follows_every_weight():
    first = train_classifier(*toys((1, 8, 8)), steps=2)
    for name in first.network.state_dict():
        changed = copy.deepcopy(first.network)
        changed.state_dict()[name].view(-1)[-1] += 1
        assert module.Classifier(changed).hash != first.hash, name


@pytest.fixture
def trainings(monkeypatch):
    """Short trainings, and their count."""
    calls = []

    def short(images, labels):
        calls.append(len(images))
        return train_classifier(images, labels, steps=10)

    monkeypatch.setattr(module, "train_classifier", short)
    return calls


def test_a_kept_classifier_comes_back_bit_for_bit(tmp_path, trainings):
    images, labels = toys((1, 8, 8))
    cache = tmp_path / "not" / "there" / "yet"
    first = classifier_for(images, labels, fingerprint="a", cache=cache)
    again = classifier_for(images, labels, fingerprint="a", cache=cache)
    assert len(trainings) == 1
    assert first.hash == again.hash
    assert torch.equal(first(images), again(images))
    assert torch.equal(classes(first, images), classes(again, images))
    (file,) = cache.iterdir()  # and no temporary file beside it
    with safe_open(file, framework="pt") as opened:
        assert list(opened.metadata()) == ["fewstep"]
        assert first.hash in opened.metadata()["fewstep"]
    classifier_for(images, labels, fingerprint="b", cache=cache)
    assert len(trainings) == 2


def test_without_a_cache_nothing_is_kept(tmp_path, monkeypatch, trainings):
    monkeypatch.chdir(tmp_path)
    classifier_for(*toys((1, 8, 8)), fingerprint="a", cache=None)
    assert len(trainings) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "empty", "first", "header", "weights", "last", "other"])
def test_a_damaged_file_is_replaced(tmp_path, trainings, damage):
    images, labels = toys((1, 8, 8))
    first = classifier_for(images, labels, fingerprint="a", cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    place = {"first": 0, "header": 30, "weights": len(whole) // 2, "last": len(whole) - 1}
    if damage in place:
        at = place[damage]
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    elif damage == "other":
        others = tmp_path / "others"
        classifier_for(*toys((3, 8, 8)), fingerprint="a", cache=others)
        file.write_bytes(next(others.iterdir()).read_bytes())
    else:
        file.write_bytes(whole[: 1000 if damage == "cut" else 0])
    trainings.clear()
    again = classifier_for(images, labels, fingerprint="a", cache=tmp_path)
    assert trainings == [len(images)]
    assert again.hash == first.hash
    assert file.read_bytes() == whole


def test_a_faster_process_decides_whose_weights_count(tmp_path, monkeypatch):
    images, labels = toys((1, 8, 8))

    def slow(images, labels):
        monkeypatch.setattr(module, "train_classifier", fast)
        classifier_for(images, labels, fingerprint="a", cache=tmp_path)
        return train_classifier(images, labels, seed=1, steps=10)

    def fast(images, labels):
        return train_classifier(images, labels, seed=2, steps=10)

    monkeypatch.setattr(module, "train_classifier", slow)
    found = classifier_for(images, labels, fingerprint="a", cache=tmp_path)
    assert found.hash == fast(images, labels).hash


@pytest.mark.slow
def test_fashion_mnist_reaches_ninety_percent():
    home = Path(os.environ.get("FEWSTEP_HOME", "~/.cache/fewstep")).expanduser()
    folder = home / "data" / "fashion-mnist"
    if len(list(folder.glob("*-ubyte.gz"))) < 4:
        pytest.skip("needs Fashion-MNIST")

    def read(name, header):
        raw = gzip.decompress((folder / name).read_bytes())
        return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=header).copy())

    def split(name):
        images = read(f"{name}-images-idx3-ubyte.gz", 16).view(-1, 1, 28, 28)
        return images, read(f"{name}-labels-idx1-ubyte.gz", 8).long()

    assert accuracy(train_classifier(*split("train")), *split("t10k")) >= 0.90
