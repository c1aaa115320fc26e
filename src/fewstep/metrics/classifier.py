"""An extractor made on the spot: a small network that learns to tell a set's own classes apart.

It needs no download and seconds of CPU, so that any labelled set has a evaluator of its own. It is
trained once for each reference set and kept, because only scores of the same weights compare.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import InputError
from fewstep.files import atomic_write
from fewstep.images import from_uint8
from fewstep.metrics.features import Extractor, ExtractorOutput, digest

RECIPE = 1  # raise it when anything here changes the features: kept classifiers are then retrained
FEATURES = 64
BATCH = 64
LEARNING_RATE = 4e-3


class Network(nn.Module):
    """Convolutions down to 4x4, a linear layer to 64 standardised features, ReLU, classes.

    The features are read before the ReLU: a Fréchet distance knows only mean and covariance, and
    half-rectified numbers (with a spike at zero, or constant) are further from Gaussian. Batch
    norm without scale makes each of them mean 0, variance 1 over the training set, so that the
    distances of different sets have one unit.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.shape, self.classes = shape, classes
        channels, height, width = shape[0], min(shape[1], 32), min(shape[2], 32)
        layers: list[nn.Module] = [nn.AdaptiveAvgPool2d((height, width))]  # bounds the cost
        stride, wide = (1 if max(height, width) <= 16 else 2), 32
        while True:
            layers += [
                nn.utils.skip_init(nn.Conv2d, channels, wide, 3, stride, 1, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU(),
            ]
            height, width = -(-height // stride), -(-width // stride)
            if max(height, width) <= 4:
                break
            channels, wide, stride = wide, 2 * wide, 2
        inner = nn.utils.skip_init(nn.Linear, wide * height * width, FEATURES, bias=False)
        self.trunk = nn.Sequential(
            *layers, nn.Flatten(), inner, nn.BatchNorm1d(FEATURES, affine=False)
        )
        self.head = nn.utils.skip_init(nn.Linear, FEATURES, classes, bias=False)

    def draw(self, generator: torch.Generator) -> None:
        """Draw the weights that have no fixed start."""
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.kaiming_normal_(weight, generator=generator)

    def forward(self, images: Float32[Tensor, "n c h w"]) -> ExtractorOutput:
        """Images in the units of uint8, 0 … 255."""
        features = self.trunk(from_uint8(images))
        return ExtractorOutput(features, self.head(features.relu()))

    def feature_maps(self, images: Float32[Tensor, "n c h w"]) -> list[Tensor]:
        """The activations after each ReLU of the trunk."""
        found: list[Tensor] = []
        x = from_uint8(images)
        for layer in self.trunk:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found


class Classifier(Extractor):
    """A trained network: its 64 features, and the classes it sees."""

    name = "classifier"
    classifies = True

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)
        self.hash = digest(network, f"{RECIPE} {network.shape} {network.classes}")

    def seen(self, images: Float[Tensor, "n c h w"]) -> ExtractorOutput:
        return self.network.to(images.device)(images)

    def feature_maps(self, images: Float[Tensor, "n c h w"]) -> list[Tensor]:
        return self.network.to(images.device).feature_maps(images)


def train_classifier(
    images: UInt8[Tensor, "n c h w"],
    labels: Int64[Tensor, " n"],
    *,
    seed: int = 0,
    steps: int | None = None,
) -> Classifier:
    """Train on the CPU, for `steps` batches of 64, with light shifts as augmentation.

    By default two passes over the images, but at least 40,000 and at most 120,000 of them. The
    labels are 0 … k-1. Equal input, seed and machine give an equal hash, whatever the number of
    threads: it is trained in one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _trained(images.cpu(), labels.cpu(), seed, steps)
    finally:
        torch.set_num_threads(threads)


def _trained(images: Tensor, labels: Tensor, seed: int, steps: int | None) -> Classifier:
    if steps is None:
        steps = min(max(40_000, 2 * len(images)), 120_000) // BATCH
    generator = torch.Generator().manual_seed(seed)
    network = _network(images, labels)
    network.draw(generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.2
    )
    rows = _shuffled(len(images), generator)
    for _ in range(steps):
        chosen = torch.tensor([next(rows) for _ in range(BATCH)])
        logits = network(_shifted(images[chosen], generator).float()).logits
        loss = F.cross_entropy(logits, labels[chosen])
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
    """The classifier of the set that `fingerprint` identifies: from `cache`, or trained and kept.

    A file that is damaged, or of another recipe, is replaced. Without `cache` nothing is kept.
    """
    if cache is None:
        return train_classifier(images, labels)
    path = classifier_file(fingerprint, cache)
    kept = _read(path, _network(images, labels), fingerprint)
    if kept is not None:
        return kept
    trained = train_classifier(images, labels)
    # another process may have been faster: its weights are the ones that scores now refer to
    kept = _read(path, _network(images, labels), fingerprint)
    if kept is not None:
        return kept
    _write(path, trained, fingerprint)
    return trained


def classifier_file(fingerprint: str, cache: Path) -> Path:
    """Where the classifier of a set is kept."""
    kept_as = hashlib.sha256(f"{RECIPE} {fingerprint}".encode()).hexdigest()[:16]
    return cache / f"classifier-{kept_as}.safetensors"


def read_classifier(path: Path) -> Classifier:
    """A kept classifier, of whatever set.

    Raises: InputError where there is none, or the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["fewstep"])
            network = Network(tuple(about["shape"]), about["classes"])
            fingerprint = about["fingerprint"]
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} holds no classifier: {error}") from error
    kept = _read(path, network, fingerprint)
    if kept is None:
        raise InputError(f"{path} is damaged; delete it, and it is trained again")
    return kept


def _network(images: Tensor, labels: Tensor) -> Network:
    _, channels, height, width = images.shape
    return Network((channels, height, width), int(labels.max()) + 1)


def _shuffled(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by at most one pixel each way; the edge is repeated."""
    n, channels, height, width = images.shape
    by = torch.randint(-1, 2, (2, n, 1), generator=generator)
    row = (torch.arange(height) + by[0]).clamp(0, height - 1)
    column = (torch.arange(width) + by[1]).clamp(0, width - 1)
    image, channel = torch.arange(n).view(n, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1)
    return images[image, channel, row.view(n, 1, height, 1), column.view(n, 1, 1, width)]


def _description(classifier: Classifier, fingerprint: str) -> str:
    """What a kept file says of itself."""
    network = classifier.network
    about = {
        "kind": classifier.name,
        "recipe": RECIPE,
        "shape": network.shape,
        "classes": network.classes,
        "fingerprint": fingerprint,
        "hash": classifier.hash,
    }
    return json.dumps(about, sort_keys=True)


def _read(path: Path, network: Network, fingerprint: str) -> Classifier | None:
    """The kept classifier, if the file is there and is exactly what `_write` would write."""
    try:
        with safe_open(path, framework="pt") as file:
            description = (file.metadata() or {}).get("fewstep")
            network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    except (OSError, SafetensorError, RuntimeError):  # missing, cut, or other tensors
        return None
    kept = Classifier(network)
    return kept if description == _description(kept, fingerprint) else None


def _write(path: Path, classifier: Classifier, fingerprint: str) -> None:
    metadata = {"fewstep": _description(classifier, fingerprint)}
    with suppress(OSError), atomic_write(path) as file:  # only a cache
        file.write(save(classifier.network.state_dict(), metadata))
