"""Training algorithms, one file each; a file's name is the method's name in recipes."""

import importlib
import pkgutil

from fewstep.errors import InputError, did_you_mean
from fewstep.methods.base import Method

SHARED = ("base", "fake_score")
"""Modules beside the methods that are none: the contract, and what several methods share."""


def names() -> list[str]:
    """The methods that the package ships."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in SHARED)


def find(name: str) -> type[Method]:
    """The method in `methods/NAME.py`, or in the module at a dotted path outside the package.

    Raises: InputError for a name that is neither, or a module without exactly one method.
    """
    if "." not in name and name not in names():
        raise InputError(
            f"there is no method {name!r}{did_you_mean(name, names())}; "
            f"there are: {', '.join(names())}"
        )
    path = name if "." in name else f"{__name__}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise InputError(f"method {name!r}: {error}") from error
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == path
    ]
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found)} methods; a method's file holds exactly one")
    return found[0]
