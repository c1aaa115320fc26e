"""A small classifier that is trained on the classes of the real images.

It needs no download and trains in seconds on a CPU, so that any labelled set can be measured. It is
trained once for each set and saved, because only scores from the same weights are comparable.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import InputError
from fewstep.images import from_uint8
from fewstep.metrics.extractors.base import (
    Extractor,
    ExtractorOutput,
    ReferenceImages,
    resize_error,
)
from fewstep.metrics.extractors.resize import Resize
from fewstep.metrics.extractors.weights import weights_digest
from fewstep.tensor_file import NotOurs, read_tensor_file, write_tensor_file

REMEDY = "delete it, and the classifier is trained again"
MAX_SIZE = 1 << 16
"""Largest number of classes, channels, rows or columns of a saved classifier."""
RECIPE = 1  # increase it when the features change: saved classifiers are then trained again
FEATURES = 64
BATCH = 64
LEARNING_RATE = 4e-3


class Network(nn.Module):
    """Convolutions down to 4x4, a linear layer to 64 standardised features, ReLU, class logits.

    The features are those before the ReLU: a Fréchet distance compares means and covariances, and
    values after a ReLU are further from a Gaussian. Batch norm without scale gives each feature
    mean 0 and variance 1 over the training set, so that distances have the same unit for all sets.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.shape, self.classes = shape, classes
        channels, height, width = shape[0], min(shape[1], 32), min(shape[2], 32)
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d((height, width))]  # bounds the cost
        stride, out = (1 if max(height, width) <= 16 else 2), 32
        while True:
            layers += [
                nn.utils.skip_init(nn.Conv2d, channels, out, 3, stride, 1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            height, width = -(-height // stride), -(-width // stride)
            if max(height, width) <= 4:
                break
            channels, out, stride = out, 2 * out, 2
        inner = nn.utils.skip_init(nn.Linear, out * height * width, FEATURES, bias=False)
        self.trunk = nn.Sequential(
            *layers, nn.Flatten(), inner, nn.BatchNorm1d(FEATURES, affine=False)
        )
        self.head = nn.utils.skip_init(nn.Linear, FEATURES, classes, bias=False)

    def draw(self, generator: torch.Generator) -> None:
        """Draw the initial convolution and linear weights."""
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.kaiming_normal_(weight, generator=generator)

    def forward(self, images: Float32[Tensor, "n c h w"]) -> ExtractorOutput:
        """Features and logits of float images in [0, 255]."""
        features = self.trunk(from_uint8(images))
        return ExtractorOutput(features, self.head(features.relu()))

    def feature_maps(self, images: Float32[Tensor, "n c h w"]) -> list[Tensor]:
        """The activations after each ReLU of the trunk."""
        maps: list[Tensor] = []
        x = from_uint8(images)
        for layer in self.trunk:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x)
        return maps


class Classifier(Extractor):
    """A trained `Network`: 64 features, and logits for the classes of its training set."""

    name = "classifier"
    classifies = True

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)
        self.hash = weights_digest(network, f"{RECIPE} {network.shape} {network.classes}")

    @classmethod
    def create(
        cls,
        images: ReferenceImages | None = None,
        *,
        resize: Resize | None = None,
        cache: Path | None = None,
    ) -> "Classifier":
        """The classifier for the classes of `images`: read from `cache`, or trained and saved.

        Raises: InputError for a `resize`, or if there are no images or they have no classes.
        """
        if resize:
            raise resize_error(cls.name, resize)
        if images is None:
            raise InputError("the extractor classifier is trained on images; give it some")
        labels = images.labels
        if labels is None or not has_classes(images):
            raise InputError(
                f"the extractor classifier learns the classes of a set, and {images.name} has "
                "none; use another extractor, such as pixels or rotations"
            )
        return classifier_for(images.images, labels, fingerprint=images.fingerprint, cache=cache)

    def extract(self, images: Float[Tensor, "n c h w"]) -> ExtractorOutput:
        return self.network.to(images.device)(images)

    def feature_maps(self, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
        return self.network.to(images.device).feature_maps(images)


def has_classes(images: ReferenceImages) -> bool:
    """Whether the images have labels of at least two classes."""
    return images.labels is not None and bool(images.labels.min() < images.labels.max())


def train_classifier(
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    seed: int = 0,
    steps: int | None = None,
) -> Classifier:
    """Train a classifier on the CPU for `steps` batches of 64, with small shifts as augmentation.

    By default it takes two passes over the images, but at least 40,000 and at most 120,000 images.
    The labels must be 0 to k-1. On one machine, equal input and seed give an equal hash; training
    uses one thread, so that the number of threads has no effect.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(images.cpu(), labels.cpu(), seed, steps)
    finally:
        torch.set_num_threads(threads)


def _train(images: Tensor, labels: Tensor, seed: int, steps: int | None) -> Classifier:
    if steps is None:
        steps = min(max(40_000, 2 * len(images)), 120_000) // BATCH
    generator = torch.Generator().manual_seed(seed)
    network = _make_network(images, labels)
    network.draw(generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.2
    )
    rows = _shuffle(len(images), generator)
    for _ in range(steps):
        batch = torch.tensor([next(rows) for _ in range(BATCH)])
        logits = network(_shift(images[batch], generator).float()).logits
        loss = F.cross_entropy(logits, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Classifier(network)


def classifier_for(
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    fingerprint: str,
    cache: Path | None,
) -> Classifier:
    """The classifier of the set with this fingerprint: read from `cache`, or trained and saved.

    A saved file that is damaged, or from another version of the training, is replaced. Without
    `cache` nothing is saved.
    """
    if cache is None:
        return train_classifier(images, labels)
    path = classifier_file(fingerprint, cache)
    saved = _read(path, _make_network(images, labels), fingerprint)
    if saved is not None:
        return saved
    classifier = train_classifier(images, labels)
    # another process may have saved one meanwhile: use it, because its scores have its hash
    saved = _read(path, _make_network(images, labels), fingerprint)
    if saved is not None:
        return saved
    _write(path, classifier, fingerprint)
    return classifier


def classifier_file(fingerprint: str, cache: Path) -> Path:
    """Path of the saved classifier of the set with this fingerprint."""
    key = hashlib.sha256(f"{RECIPE} {fingerprint}".encode()).hexdigest()[:16]
    return cache / f"classifier-{key}.safetensors"


def read_classifier(path: Path) -> Classifier:
    """A saved classifier of any set.

    Raises: InputError if the file is missing or damaged.
    """
    try:
        tensors, metadata = read_tensor_file(path, remedy=REMEDY)
        shape, classes = metadata["shape"], metadata["classes"]
        fingerprint = str(metadata["fingerprint"])
        if not all(type(size) is int and 1 <= size <= MAX_SIZE for size in (*shape, classes)):
            raise ValueError(f"its images have the shape {shape}, and its classes are {classes}")
        classifier = _load(Network(tuple(shape), classes), tensors)
    except InputError:
        raise
    except (NotOurs, KeyError, TypeError, ValueError, RuntimeError) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{path} holds no classifier: {problem}") from error
    if metadata != _description(classifier, fingerprint):
        raise InputError(f"{path} is of another version of the classifier: {REMEDY}")
    return classifier


def _make_network(images: Tensor, labels: Tensor) -> Network:
    _, channels, height, width = images.shape
    return Network((channels, height, width), int(labels.max()) + 1)


def _shuffle(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by at most one pixel in each direction, repeating its edge."""
    n, channels, height, width = images.shape
    shift = torch.randint(-1, 2, (2, n, 1), generator=generator)
    row = (torch.arange(height) + shift[0]).clamp(0, height - 1)
    column = (torch.arange(width) + shift[1]).clamp(0, width - 1)
    image, channel = torch.arange(n).view(n, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
    return images[image, channel, row.view(n, 1, height, 1), column.view(n, 1, 1, width)]


def _description(classifier: Classifier, fingerprint: str) -> dict[str, Any]:
    """The metadata of a saved classifier."""
    network = classifier.network
    return {
        "kind": classifier.name,
        "recipe": RECIPE,
        "shape": list(network.shape),
        "classes": network.classes,
        "fingerprint": fingerprint,
        "hash": classifier.hash,
    }


def _read(path: Path, network: Network, fingerprint: str) -> Classifier | None:
    """The classifier in a file; None if the file differs from what `_write` would write."""
    try:
        tensors, metadata = read_tensor_file(path)
        classifier = _load(network, tensors)
    except (InputError, NotOurs, RuntimeError):  # missing, damaged, or other tensors
        return None
    return classifier if metadata == _description(classifier, fingerprint) else None


def _load(network: Network, tensors: dict[str, Tensor]) -> Classifier:
    """The classifier of a network with these weights.  Raises: RuntimeError for other ones."""
    network.load_state_dict(tensors, assign=True)
    return Classifier(network)


def _write(path: Path, classifier: Classifier, fingerprint: str) -> None:
    metadata = _description(classifier, fingerprint)
    with suppress(OSError):  # the cache is optional
        write_tensor_file(path, classifier.network.state_dict(), metadata)
