"""Image sets as uint8 tensors, loaded by name: `load("cifar10", split="test")`.

A reader of a data set is a function `read(split)` that returns an `ImageSet`. It may also take the
keyword arguments `size`, if it resizes images itself, and `path`. Readers are found by the names in
`plugins.names("data")`, or by an address such as `my_package.sets:read_flowers`.

Command lines name a set and its path in one word, `folder:PATH`; see `split_path`.
"""

from importlib.util import find_spec
from inspect import signature
from pathlib import Path

from fewstep import plugins
from fewstep.data.imageset import ImageSet, check_split
from fewstep.errors import InputError, did_you_mean
from fewstep.paths import check_kind, expand_home

__all__ = ["ImageSet", "check_split", "load", "split_path"]


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
    _check_name(name)
    read = plugins.resolve("data", name)
    if not callable(read):
        raise InputError(f"{name} is no function, as a reader of a data set must be: name another")
    accepted = signature(read).parameters
    arguments = {"size": size, "path": None if path is None else Path(expand_home(str(path)))}
    if path is not None and "path" not in accepted:
        raise InputError(f'{name} takes no path ({path}); use the set "folder" for image files')
    images = read(split, **{key: value for key, value in arguments.items() if key in accepted})
    if not isinstance(images, ImageSet):
        raise InputError(f"{name} returned {type(images).__name__}, not a fewstep.data.ImageSet")
    return images if size is None else images.resize(size)


def _check_name(name: str) -> None:
    """Raise InputError for a name that contains a path."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix in plugins.names("data"):
        raise InputError(
            f"{name} is a name with a path: in a recipe, set data.name={prefix} data.path={rest}; "
            f'in Python, load("{prefix}", path="{rest}")'
        )
    if not colon and name not in plugins.names("data") and Path(name).is_dir():
        check_kind(name, "images")
        raise InputError(
            f"{name} is a folder: in a recipe, set data.name=folder data.path={name}; in Python, "
            f'load("folder", path="{name}")'
        )


def split_path(address: str) -> tuple[str, Path | None]:
    """The name of a data set and its path.

    `address` is `NAME`, `NAME:PATH`, `module:function[:PATH]`, or a folder of images. Registered
    names take precedence over modules and folders of the same name.

    Raises: InputError for an empty path, and for a name that is none of these.
    """
    name, colon, rest = address.partition(":")
    choices = plugins.names("data")
    if name in choices:
        if colon and not rest:
            raise InputError(f"{address} has no path after the colon; write {name}:PATH")
        return name, Path(rest) if colon else None
    function, path_colon, path = rest.partition(":")
    names = [*name.split("."), *function.split(".")]
    hint = did_you_mean(name.lower(), choices)
    is_code = all(map(str.isidentifier, names)) and not (hint and find_spec(names[0]) is None)
    if is_code and (path or not path_colon):
        return f"{name}:{function}", Path(path) if path else None
    if Path(address).is_dir():
        check_kind(address, "images")
        return "folder", Path(address)
    raise InputError(
        f"unknown data set {name!r}{hint} (choose one of {', '.join(choices)}; folder:PATH is a "
        "folder of images, and my_package.my_module:my_function a reader of your own)"
    )
