"""A set of real images in an extractor's features: made once, kept, and compared with any other."""

import hashlib
import json
import math
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fewstep import __version__
from fewstep.files import atomic_write, tensor_digest
from fewstep.metrics.features import Extractor
from fewstep.metrics.frechet import Moments
from fewstep.metrics.neighbours import Nearest, copy_radius, nearest

LAYOUT = 2  # raise it when the file or what stands in it changes
LARGEST = 512 * 2**20  # bytes of features that are kept; a seeded choice of rows beyond
BLOCK = 4096
ASKED = 2000  # rows whose nearest neighbours set the radius of copies


class Reference:
    """Moments of all images, and the features of all or of a seeded choice of them, shuffled.

    `about` is where it comes from: the set's name, fingerprint and count, the extractor's name,
    hash and resizing, and the version that made it.
    """

    def __init__(
        self, extractor: Extractor, about: dict[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        self.extractor = extractor
        self.about = about
        self.moments = Moments(tensors["mean"].numel())
        self.moments.count = about["count"]
        self.moments.mean, self.moments.scatter = tensors["mean"], tensors["scatter"]
        self.features: Float[Tensor, "m d"] = tensors["features"]
        self.rows = tensors["rows"]
        self.copy_radius = float(tensors["copy_radius"])
        """Within it 1 % of the set have another image; NaN in sets too small to tell."""

    def __len__(self) -> int:
        return self.about["count"]

    def nearest(self, features: Float[Tensor, "n d"], *, k: int = 1) -> Nearest:
        """The k nearest kept images of each row, by their row numbers in the set."""
        found = nearest(features, self.features.split(BLOCK), k=k)
        return Nearest(found.distances, self.rows[found.rows])


def build_reference(
    extractor: Extractor,
    images: UInt8[Tensor, "n c h w"],
    *,
    name: str,
    fingerprint: str,
    cache: Path | None,
) -> Generator[int, None, Reference]:
    """The reference of a set, from `cache` or made and kept there; yields images done so far.

    A kept file that is damaged, or that says something else of itself, is made anew.
    """
    about = {
        "layout": LAYOUT,
        "set": name,
        "fingerprint": fingerprint,
        "count": len(images),
        "extractor": extractor.name,
        "hash": extractor.hash,
        "resize": extractor.resize,
    }
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"reference-{key}.safetensors" if cache else None
    kept = _read(path, about) if path else None
    if kept is not None:
        yield len(images)
        return Reference(extractor, *kept)
    tensors = yield from _made(extractor, images)
    about |= {"version": __version__, "digest": tensor_digest(tensors)}
    if path:
        with (
            suppress(OSError),
            atomic_write(path) as file,
        ):  # only a cache
            file.write(save(tensors, {"fewstep": json.dumps(about, sort_keys=True)}))
    return Reference(extractor, about, tensors)


def _made(
    extractor: Extractor, images: UInt8[Tensor, "n c h w"]
) -> Generator[int, None, dict[str, Tensor]]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    kept, moments, done = torch.empty(0, 0), Moments(0), 0
    place = torch.empty(0, dtype=torch.long)
    for part in images.split(BLOCK // 4):
        features = extractor(part).cpu()
        if done == 0:
            moments = Moments(features.shape[1])
            order = order[: max(2, LARGEST // (4 * features.shape[1]))]
            kept = torch.empty(len(order), features.shape[1])
            place = torch.full((len(images),), -1).scatter(0, order, torch.arange(len(order)))
        moments.update(features)
        mine = place[done : done + len(part)]
        kept[mine[mine >= 0]] = features[mine >= 0]
        done += len(part)
        yield done
    asked = torch.arange(min(ASKED, len(order)))
    # fewer rows than that have no nearest 1 %
    enough = len(order) >= 100
    radius = copy_radius(kept[asked], asked, kept.split(BLOCK)) if enough else math.nan
    return {
        "mean": moments.mean,
        "scatter": moments.scatter,
        "features": kept,
        "rows": order,
        "copy_radius": torch.tensor(radius, dtype=torch.float64),
    }


def _read(path: Path, about: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["fewstep"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        sound = about.items() <= told.items() and told["digest"] == tensor_digest(tensors)
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError, AttributeError):
        return None
    return (told, tensors) if sound else None
