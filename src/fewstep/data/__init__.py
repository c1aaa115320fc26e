"""Image sets as uint8 tensors, loaded by name: `load("cifar10", split="test")`.

A reader of a data set is a function `read(split)` that returns an `ImageSet`. It may also take the
keyword arguments `size`, if it resizes images itself, and `path`. Readers are found by the names in
`plugins.names("data")`, or by an address such as `my_package.sets:read_flowers`.
"""

from inspect import signature
from pathlib import Path

from fewstep import plugins
from fewstep.data.imageset import ImageSet, check_split
from fewstep.errors import InputError

__all__ = ["ImageSet", "check_split", "load"]


def load(
    name: str,
    *,
    split: str = "train",
    size: int | None = None,
    path: str | Path | None = None,
) -> ImageSet:
    """Load the image set `name`, resized to `size` x `size` pixels if given.

    `path` is the folder of images of `folder`, or that of a `celeba` outside `$FEWSTEP_HOME/data`.
    Missing files are downloaded there, except CelebA's.

    Raises: InputError for an unknown name or split, other wrong arguments, and files that are
    damaged or cannot be downloaded.
    """
    if size is not None and size < 1:
        raise InputError(f"data size is {size}; it counts pixels and must be at least 1")
    read = plugins.resolve("data", name)
    accepted = signature(read).parameters
    arguments = {"size": size, "path": None if path is None else Path(path)}
    if path is not None and "path" not in accepted:
        raise InputError(f'{name} takes no path ({path}); the set "folder" reads image files')
    images = read(split, **{key: value for key, value in arguments.items() if key in accepted})
    if not isinstance(images, ImageSet):
        raise InputError(f"{name} returned {type(images).__name__}, not a fewstep.data.ImageSet")
    return images if size is None else images.resized(size)
