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
    """Load the image set `name`. With `size`, its images are resized to `size` x `size` pixels.

    `path` is for two sets: the folder of images for the set "folder", and the folder of "celeba" if
    it is not `$FEWSTEP_HOME/data/celeba`. The files of the other sets are in `$FEWSTEP_HOME/data`,
    and are downloaded if they are missing.

    Raises: InputError for an unknown name or split, other wrong arguments, and files that are
    damaged or cannot be downloaded.
    """
    if size is not None and size < 1:
        raise InputError(f"the data size is {size} pixels; it must be at least 1")
    read = plugins.resolve("data", name)
    accepted = signature(read).parameters
    arguments = {"size": size, "path": None if path is None else Path(path)}
    if path is not None and "path" not in accepted:
        raise InputError(f'{name} takes no path ({path}); use the set "folder" for image files')
    images = read(split, **{key: value for key, value in arguments.items() if key in accepted})
    if not isinstance(images, ImageSet):
        raise InputError(f"{name} returned {type(images).__name__}, not a fewstep.data.ImageSet")
    return images if size is None else images.resize(size)
