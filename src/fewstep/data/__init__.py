"""Image sets as uint8 tensors, loaded by name: `load("cifar10", split="test")`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from fewstep.data.celeba import SPLITS, read_celeba
from fewstep.data.cifar10 import read_cifar10
from fewstep.data.digits import read_digits
from fewstep.data.folder import read_folder
from fewstep.data.imageset import ImageSet
from fewstep.data.mnist import read_mnist
from fewstep.errors import InputError, did_you_mean

__all__ = ["NAMES", "ImageSet", "load"]


class _Known(NamedTuple):
    splits: tuple[str, ...]
    read: Callable[[str], ImageSet]  # from the split


_KNOWN = {
    "digits": _Known(("train",), lambda _: read_digits()),
    "mnist": _Known(("train", "test"), partial(read_mnist, "mnist")),
    "fashion-mnist": _Known(("train", "test"), partial(read_mnist, "fashion-mnist")),
    "cifar10": _Known(("train", "test"), read_cifar10),
}
_PLACED = {"celeba": tuple(SPLITS), "folder": ("train",)}
"""Those that a path may be given for, and their splits."""
NAMES = (*_KNOWN, *_PLACED)


def load(
    name: str,
    *,
    split: str = "train",
    size: int | None = None,
    path: str | Path | None = None,
) -> ImageSet:
    """The image set called `name`, one of `NAMES`, brought to `size` x `size` when that is given.

    `path` is for `folder`, and for a `celeba` that is not in `$FEWSTEP_HOME/data`. Files that are
    missing are downloaded into it, but for CelebA's; where that fails, the error says which files
    go where.
    """
    if name not in NAMES:
        near = did_you_mean(name.lower(), NAMES)
        raise InputError(f"there is no data set {name!r}{near}; there are: {', '.join(NAMES)}")
    if size is not None and size < 1:
        raise InputError(f"data size is {size}; it counts pixels and must be at least 1")
    splits = _KNOWN[name].splits if name in _KNOWN else _PLACED[name]
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}, only {', '.join(splits)}")
    if name == "folder":
        return _load_folder(path, size)
    if name == "celeba":
        return read_celeba(split, size=size, folder=Path(path) if path else None)
    if path is not None:
        raise InputError(f'{name} takes no path ({path}); a folder of images is the set "folder"')
    images = _KNOWN[name].read(split)
    return images if size is None else images.resized(size)


def _load_folder(path: str | Path | None, size: int | None) -> ImageSet:
    if path is None:
        raise InputError("folder needs a path: say where the images are")
    return read_folder(Path(path), size=size)
