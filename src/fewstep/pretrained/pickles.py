"""Read a pickle without running it.

Python's unpickler calls whatever functions a file names. Here, each class or function that a file
may name becomes an inert `Record` of its arguments, its state and its items; any other name is
refused. `Record`s of tensors and containers are then turned into values. Tensors that are nested in
a plain pickle are read by `torch.load(weights_only=True)`.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import InputError
from fewstep.paths import open_regular

MAX_MODULES = 100_000
_PENDING = object()
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
        """All parameters and buffers by their dotted names, as in a state dict.

        Raises: ValueError for more than MAX_MODULES modules, which may be one that is repeated.
        """
        tensors: dict[str, Tensor] = {}
        queue, count = [("", self)], 0
        while queue:
            prefix, module = queue.pop()
            count += 1
            if count > MAX_MODULES:
                raise ValueError(f"it has more than {MAX_MODULES:,} modules")
            for group in ("_parameters", "_buffers"):
                values = cast(Mapping[str, Any], module.attributes.get(group) or {})
                tensors |= {f"{prefix}{k}": v for k, v in values.items() if isinstance(v, Tensor)}
            queue += [(f"{prefix}{k}.", child) for k, child in module.children().items()]
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
        # a map never reads, and so never allocates, more bytes than the file has
        with open_regular(path) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            _check_operations(content)
            content.seek(0)
            return _Values().value(InertUnpickler(content).load())
    except InputError:
        raise
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


def _check_operations(content: mmap) -> None:
    """Refuse a pickle that numbers its objects beyond their count.

    The unpickler's table is as long as the largest number, whatever the size of the file.
    """
    count = 0
    for operation, argument, _ in pickletools.genops(cast(IO[bytes], content)):
        count += 1
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and cast(int, argument) > count:
            raise ValueError(f"its object {count} has the number {argument}")


class _Values:
    """Replaces `Record`s by values, each object once, however often a pickle refers to it."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, Any]] = {}
        """The value of each object, by its id; the object itself, so that its id stays its own."""

    def value(self, item: Any) -> Any:
        """`item` with all `Record`s replaced by values.  Raises: ValueError if it is damaged."""
        if not isinstance(item, Record | Mapping | list | tuple):
            return item
        if id(item) not in self._done:  # pyright: ignore[reportUnknownArgumentType]
            self._done[id(item)] = item, _PENDING  # pyright: ignore[reportUnknownArgumentType]
            self._done[id(item)] = item, self._convert(item)  # pyright: ignore[reportUnknownArgumentType]
        value = self._done[id(item)][1]  # pyright: ignore[reportUnknownArgumentType]
        if value is _PENDING:
            raise ValueError("an object contains itself")
        return value

    def _convert(self, item: Any) -> Any:
        match item:
            case Record():
                return self._record_value(item)
            case Mapping():
                pairs = cast(Mapping[Any, Any], item).items()
                return {key: self.value(value) for key, value in pairs}
            case _:
                return [self.value(value) for value in cast(list[Any], item)]

    def _record_value(self, record: Record) -> Any:
        if (record.module, record.name) in CONTAINERS:
            pairs = dict(record.args[0]) if record.args else {}
            return self._convert({**pairs, **record.items})
        if MODULES.fullmatch(record.module):
            return NetworkObject(record.name, self.value(record.state or {}))
        match record.name, [self.value(argument) for argument in record.args]:
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
    if math.prod(size) * values.element_size() > values.untyped_storage().nbytes():
        raise ValueError(f"a tensor of shape {size[:8]} claims more bytes than are stored for it")
    # unlike `set_`, `as_strided` checks that offset, size and stride lie within the storage
    return values.as_strided(size, stride, offset).clone()


def unsafe_name(error: Exception) -> str:
    """The class or function that `torch.load(weights_only=True)` refused, from its message."""
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    return match[1] if match else str(error).strip().partition("\n")[0]
