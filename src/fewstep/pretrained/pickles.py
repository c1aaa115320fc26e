"""Read a pickle without running it.

Python's unpickler calls whatever functions a file names. Here, each class or function that a file
may name becomes an inert `Record` of its arguments, its state and its items; any other name is
refused. `Record`s of tensors and containers are then turned into values. Tensors that are nested in
a plain pickle are read by `torch.load(weights_only=True)`.
"""

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import InputError

CONTAINERS = {("collections", "OrderedDict"), ("dnnlib.util", "EasyDict")}
"""Classes whose items are all that matters: they become dicts."""
FUNCTIONS = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.storage", "_load_from_bytes"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("builtins", "set"),
    ("__builtin__", "set"),
    ("_codecs", "encode"),  # bytes, in pickles of protocol 2
}
"""Functions and classes that a snapshot of a network calls, other than torch's modules."""
MODULES = re.compile(r"torch\.nn\.modules(\.\w+)*")
"""Python modules of torch whose classes are networks' layers."""


class Refused(Exception):
    """Raised for a name that a pickle must not use; its text is the name, such as `os.system`."""


class Record:
    """An object of a pickle that was not built: what its class or function would have received."""

    module = ""
    name = ""
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any) -> "Record":
        """Store the arguments; the class or function itself is not called."""
        record = super().__new__(cls)
        record.args, record.state, record.items = args, None, {}
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class NetworkObject:
    """A layer or network: the name of its class and its attributes."""

    def __init__(self, class_name: str, attributes: Mapping[str, Any]) -> None:
        groups = [attributes, *map(attributes.get, ("_parameters", "_buffers", "_modules"))]
        if not all(group is None or isinstance(group, Mapping) for group in groups):
            raise ValueError(f"the attributes of a {class_name} are not those of a network")
        self.class_name = class_name
        self.attributes = attributes

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and buffers by their dotted names, as in a state dict."""
        tensors: dict[str, Tensor] = {}
        for group in ("_parameters", "_buffers"):
            values = cast(Mapping[str, Any], self.attributes.get(group) or {})
            tensors |= {k: v for k, v in values.items() if isinstance(v, Tensor)}
        for name, child in self.children().items():
            tensors |= {f"{name}.{key}": value for key, value in child.tensors().items()}
        return tensors

    def children(self) -> dict[str, "NetworkObject"]:
        """The modules that this one contains, by name."""
        children = cast(Mapping[str, Any], self.attributes.get("_modules") or {})
        return {k: v for k, v in children.items() if isinstance(v, NetworkObject)}


class InertUnpickler(pickle.Unpickler):
    """Build `Record`s in place of all objects.  Raises: Refused for a name that is not allowed."""

    def find_class(self, module: str, name: str) -> Any:
        """An inert class of this name, new for each use, so that no file can change another's."""
        key = (module, name)
        if not (key in CONTAINERS or key in FUNCTIONS or MODULES.fullmatch(module)):
            raise Refused(f"{module}.{name}")
        return type(name, (Record,), {"module": module, "name": name})


def read_pickle(path: Path) -> Any:
    """The content of a pickle: containers, numbers, tensors and `NetworkObject`s.

    Raises: InputError for a pickle that is damaged, or that names any other class or function.
    """
    try:
        with path.open("rb") as file:
            return _value(InertUnpickler(file).load())
    except Refused as error:
        raise InputError(
            f"{path} is a pickle that would run {error} when it is loaded; fewstep refuses it and "
            "did not run it"
        ) from None
    # a damaged pickle can fail in any operation: all of them act on inert values only
    except Exception as error:
        problem = str(error).partition("\n")[0]
        raise InputError(
            f"{path} is a damaged pickle, or one that fewstep does not read: {problem}"
        ) from error


def _value(item: Any) -> Any:
    """`item` with all `Record`s replaced by values."""
    match item:
        case Record():
            return _record_value(item)
        case Mapping():
            return {key: _value(value) for key, value in cast(Mapping[Any, Any], item).items()}
        case list() | tuple():
            return [_value(value) for value in cast(list[Any], item)]
        case _:
            return item


def _record_value(record: Record) -> Any:
    if (record.module, record.name) in CONTAINERS:
        pairs = dict(record.args[0]) if record.args else {}
        return _value({**pairs, **record.items})
    if MODULES.fullmatch(record.module):
        return NetworkObject(record.name, _value(record.state or {}))
    match record.name, [_value(argument) for argument in record.args]:
        case "_reconstruct_persistent_obj", [meta]:
            # `meta` also holds the source code of the class, which is never executed
            return NetworkObject(meta["class_name"], meta["state"] or {})
        case "_rebuild_parameter", [Tensor() as data, *_]:
            return data
        case "_rebuild_tensor_v2", [storage, offset, size, stride, *_]:
            return _tensor(storage, offset, tuple(size), tuple(stride))
        case "_load_from_bytes", [bytes() as content]:
            return _storage(content)
        case "scalar", [dtype, bytes() as content]:
            return np.frombuffer(content, dtype=dtype, count=1)[0].item()
        case "dtype", [str() as code, *_] if re.fullmatch(r"[fiub]\d", code):
            return np.dtype(code).newbyteorder("<")
        case "set", _:
            return []
        case "encode", [str() as text, "latin1"]:
            return text.encode("latin1")
        case "encode", []:
            return b""
        case name, _:
            raise ValueError(f"unexpected arguments of {record.module}.{name}")


def _storage(content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Refused(unsafe_name(error)) from None


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A copy of the part of a storage that a tensor views."""
    values = torch.empty(0, dtype=storage.dtype)
    values.set_(storage)
    # unlike `set_`, `as_strided` checks that offset, size and stride lie within the storage
    return values.as_strided(size, stride, offset).clone()


def unsafe_name(error: Exception) -> str:
    """The class or function that `torch.load(weights_only=True)` refused, from its message."""
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    return match[1] if match else str(error).strip().partition("\n")[0]
