"""Writes pickles as NVIDIA's EDM writes its networks: each module with the source of its class."""

import pickle
import sys
import types
from collections import OrderedDict

import torch


def rebuild(meta):
    raise AssertionError("reading a snapshot must not build the module")


class Module:
    """A module that pickles itself as the class `class_name`, whose code travels in the file."""

    def __init__(
        self, class_name, parameters=None, buffers=None, children=None, source="", **extra
    ):
        self.class_name = class_name
        self.source = source
        self.parameters, self.children = parameters or {}, children or {}
        weights = {name: torch.nn.Parameter(p) for name, p in self.parameters.items()}
        self.attributes = {
            "training": False,
            "_parameters": OrderedDict(weights),
            "_buffers": OrderedDict(buffers or {}),
            "_modules": OrderedDict(self.children),
            "_non_persistent_buffers_set": set(),
            **extra,
        }

    def __reduce__(self):
        meta = {
            "type": "class",
            "version": 6,
            "module_src": self.source,
            "class_name": self.class_name,
            "state": self.attributes,
        }
        return rebuild, (meta,)


def dump(content, protocol=None):
    """The bytes of a pickle that names NVIDIA's function to rebuild a module."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = rebuild
    names = rebuild.__module__, rebuild.__name__, rebuild.__qualname__
    rebuild.__module__, rebuild.__name__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    rebuild.__qualname__ = rebuild.__name__
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        return pickle.dumps(content, protocol)
    finally:
        rebuild.__module__, rebuild.__name__, rebuild.__qualname__ = names
        del sys.modules["torch_utils"], sys.modules["torch_utils.persistence"]
