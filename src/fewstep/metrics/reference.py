"""`Reference`: features of the real images, which are computed once and cached."""

import hashlib
import json
import math
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep import __version__
from fewstep.errors import InputError
from fewstep.metrics.distances.frechet import Moments
from fewstep.metrics.distances.neighbours import Nearest, copy_radius, nearest
from fewstep.metrics.extractors.base import Extractor, ReferenceImages
from fewstep.tensor_file import NotOurs, read_tensor_file, write_tensor_file

LAYOUT = 2  # increase it when the content of the file changes
TENSORS = ("mean", "scatter", "features", "rows", "copy_radius")
MAX_BYTES = 512 * 2**20  # of stored features; for larger sets, random rows are stored
BLOCK = 4096
RADIUS_ROWS = 2000  # rows whose nearest neighbours determine the copy radius


class Reference:
    """Moments of the features of all real images, and the features of all or some of them.

    The rows of `features` are shuffled with a fixed seed; `rows` are their numbers in the set.
    `description` has the set's name, fingerprint and count, the extractor's name, hash and resize,
    and the version of fewstep.
    """

    def __init__(
        self, extractor: Extractor, description: dict[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        self.extractor = extractor
        self.description = description
        self.moments = Moments(tensors["mean"].numel())
        self.moments.count = description["count"]
        self.moments.mean, self.moments.scatter = tensors["mean"], tensors["scatter"]
        self.features: Float[Tensor, "m d"] = tensors["features"]
        self.rows = tensors["rows"]
        self.copy_radius = float(tensors["copy_radius"])
        """Distance within which 1 % of the real images have another one; NaN below 100 images."""

    def __len__(self) -> int:
        return self.description["count"]

    def nearest(self, features: Float[Tensor, "n d"], *, k: int = 1) -> Nearest:
        """The k nearest real images of each row, by their numbers in the set."""
        result = nearest(features, self.features.split(BLOCK), k=k)
        return Nearest(result.distances, self.rows[result.rows])


def build_reference(
    extractor: Extractor, images: ReferenceImages, *, cache: Path | None
) -> Generator[int, None, Reference]:
    """The reference of `images`, which is read from `cache`, or computed and saved there.

    Yields the number of processed images. A cached file that is damaged, or belongs to another set
    or extractor, is replaced.
    """
    description = {
        "layout": LAYOUT,
        "set": images.name,
        "fingerprint": images.fingerprint,
        "count": len(images.images),
        "extractor": extractor.name,
        "hash": extractor.hash,
        "resize": extractor.resize,
    }
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"reference-{key}.safetensors" if cache else None
    saved = _read(path, description) if path else None
    if saved is not None:
        yield len(images.images)
        return Reference(extractor, *saved)
    tensors = yield from _compute(extractor, images.images)
    description |= {"version": __version__}
    if path:
        with suppress(OSError):  # the cache is optional
            write_tensor_file(path, tensors, description)
    return Reference(extractor, description, tensors)


def _compute(
    extractor: Extractor, images: UInt8[Tensor, "n c h w"]
) -> Generator[int, None, dict[str, Tensor]]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    stored, moments, done = torch.empty(0, 0), Moments(0), 0
    position = torch.empty(0, dtype=torch.long)  # of each image in `stored`; -1 if it is not there
    for batch in images.split(BLOCK // 4):
        features = extractor(batch).cpu()
        if done == 0:
            moments = Moments(features.shape[1])
            order = order[: max(2, MAX_BYTES // (4 * features.shape[1]))]
            stored = torch.empty(len(order), features.shape[1])
            position = torch.full((len(images),), -1).scatter(0, order, torch.arange(len(order)))
        moments.update(features)
        rows = position[done : done + len(batch)]
        stored[rows[rows >= 0]] = features[rows >= 0]
        done += len(batch)
        yield done
    sample = torch.arange(min(RADIUS_ROWS, len(order)))
    radius = math.nan  # 1 % of fewer than 100 rows is less than one row
    if len(order) >= 100:
        radius = copy_radius(stored[sample], sample, stored.split(BLOCK))
    return {
        "mean": moments.mean,
        "scatter": moments.scatter,
        "features": stored,
        "rows": order,
        "copy_radius": torch.tensor(radius, dtype=torch.float64),
    }


def _read(
    path: Path, description: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Description and tensors of a cached reference; None if it is damaged or describes another."""
    try:
        tensors, saved = read_tensor_file(path)
    except (InputError, NotOurs):
        return None
    valid = description.items() <= saved.items() and set(tensors) == set(TENSORS)
    return (saved, tensors) if valid else None
