"""Weights files: safetensors with one JSON object that describes the network to build for them."""

import re
import reprlib
from collections.abc import Collection, Mapping
from collections.abc import Generator as Pull
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import __version__, plugins
from fewstep.autoguidance import weak_network
from fewstep.backbones import build_backbone
from fewstep.backbones.outline import without_memory
from fewstep.description import from_description
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.guidance import unguided
from fewstep.paths import check_regular
from fewstep.schema import preset_names
from fewstep.stored_weights import restore_weights
from fewstep.tables import from_table, to_table
from fewstep.tensor_file import (
    REMEDY,
    NotOurs,
    Unreadable,
    read_note,
    read_tensor_file,
    write_tensor_file,
)

AUTOENCODER = "autoencoder"
"""The `kind` of a weights file that contains an autoencoder; those of generators have none."""
AVERAGES = "averages"
"""The `kind` of a snapshot of averages, from which `fewstep average` makes a generator."""
_TYPES: dict[str, Any] = {
    "kind": str,
    "description": dict,
    "recipe": dict | None,
    "pins": dict,
    "scores": list,
    "license": str,
    "step": int,
}
"""Types of the values in the JSON object."""
_ITEM_TYPES: dict[str, Any] = {"pins": str, "scores": dict}
"""Types of the items of these values."""


def write_weights_file(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object; equal contents give equal bytes."""
    write_tensor_file(path, tensors, note)


def read_weights_file(
    path: Path, *, verify: bool = True, remedy: str = REMEDY
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON object that `write_weights_file` wrote.

    For `verify` and `remedy` see `read_tensor_file`.

    Raises: InputError for a file that does not exist, is damaged, or was not written by fewstep.
    """
    with _explained(path, remedy):
        tensors, note = read_tensor_file(path, verify=verify, remedy=remedy)
    return tensors, _check_types(note, path)


def read_description(path: Path, *, remedy: str = REMEDY) -> dict[str, Any]:
    """The JSON object of a weights file, whose tensors are not read.

    `remedy` ends error messages.  Raises: InputError as `read_weights_file`.
    """
    with _explained(path, remedy):
        note = read_note(path, remedy)
    return _check_types(note, path)


@contextmanager
def _explained(path: Path, remedy: str) -> Pull[None]:
    """Raise InputError for a file that is missing or not ours, with what it is and what to do."""
    check_regular(path)
    if not path.is_file():
        remedy = "give a run folder or a weights file, or another project's checkpoint as "
        remedy += ", ".join(f"{source}:PATH" for source in plugins.names("source"))
        if str(path) in preset_names():
            remedy = f"it is a recipe's name; train it, `fewstep train {path} --out DIR`, for a run"
        raise InputError(f"{path} does not exist: {remedy}")
    try:
        yield
    except NotOurs as error:
        from fewstep.pretrained.files import describe_file, describe_text

        if path.suffix == ".safetensors" and isinstance(error, Unreadable):
            problem = describe_text(path) or error
            problem = f"{path} is damaged or not a safetensors file: {problem}"
            raise InputError(f"{problem}: {remedy}") from error
        raise InputError(describe_file(path)) from error


def _check_types(note: dict[str, Any], path: Path) -> dict[str, Any]:
    for key, kind in _TYPES.items():
        value, item_kind = note.get(key), _ITEM_TYPES.get(key, object)
        items: Any = value.values() if isinstance(value, dict) else value
        fits = isinstance(value, kind) and not isinstance(value, bool)
        if item_kind is not object:
            fits = fits and all(isinstance(item, item_kind) for item in items)
        if key in note and not fits:
            problem = f"{key} in its metadata is {reprlib.repr(note[key])}"
            raise InputError(f"{path} is damaged: {problem}{_newer_version(note)}")
    return note


def build_generator(
    note: Mapping[str, Any], tensors: dict[str, Tensor], path: Path, allow_code: Collection[str]
) -> Generator:
    """The generator that a weights file's JSON object describes, with its weights in float32.

    `path` is the file, and `allow_code` the packages whose classes it may use. Raises InputError if
    the description is not valid here, or the tensors do not fit it.
    """
    if note.get("kind") == AUTOENCODER:
        raise InputError(
            f"{path} is an autoencoder, which generates no images: train a generator of its "
            f"latents with data.autoencoder={path}, or measure its reconstructions with `fewstep "
            f"encode DATA --autoencoder {path} --measure`"
        )
    if note.get("kind") == AVERAGES:
        raise InputError(
            f"{path} is a snapshot of averages, from which `fewstep average` makes a model: give "
            "the run folder"
        )
    if "description" not in note:
        problem = "its metadata do not describe a network"
        raise InputError(f"{path} is damaged: {problem}{_newer_version(note)}")
    try:
        tensors = restore_weights(tensors)
        shapes = {name: value.shape for name, value in tensors.items()}
        generator = from_description(note["description"], allow_code=allow_code, shapes=shapes)
        generator.load_state_dict(tensors)
    except (InputError, RuntimeError) as error:
        problem = "its description is nested too deeply"
        problem = problem if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(f"{path}: {problem}{_newer_version(note)}") from error
    return generator.eval().requires_grad_(False)


def _newer_version(note: Mapping[str, Any]) -> str:
    """What to add to an error message about a file of a newer version; else empty."""
    version = str(note.get("version"))
    if _numbers(version) <= _numbers(__version__):
        return ""
    return f"; it was made by a newer version, fewstep {version}: pip install --upgrade fewstep"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def method_name(recipe: Mapping[str, Any] | None) -> str:
    """The method in the table of a recipe; empty if it has none."""
    method = (recipe or {}).get("method")
    return str(method.get("name", "")) if isinstance(method, Mapping) else ""


def check_loadable(generator: Generator) -> dict[str, Any]:
    """The generator's description.  Raises: InputError if `load` could not build it again."""
    if weak_network(generator.denoiser.backbone):
        raise InputError(
            "a generator under autoguidance cannot be saved: a file has the weights of one "
            "network; save it without, and give autoguidance where it is sampled"
        )
    description, backbone = generator.describe(), unguided(generator.denoiser.backbone)
    parts: dict[str, Any] = {
        "backbone": backbone.config,
        "process": generator.denoiser.process,
        "parametrization": generator.denoiser.parametrization,
        "sampler": generator.step,
        "grid": generator.grid,
    }
    if generator.spec.text is not None:
        parts["text-encoder"] = generator.spec.text
    for noun, part in parts.items():
        plugins.check_importable(noun, type(part))
        if from_table(type(part), to_table(part), noun) != part:
            raise InputError(
                f"the {noun} {part!r} is not equal to the one built from its fields, so it cannot "
                "be saved: keep all its settings in fields"
            )
    with without_memory():  # only names and shapes of the weights are compared
        again = build_backbone(
            backbone.config, shape=backbone.shape, classes=backbone.classes, text=backbone.text
        )
    if _shapes(again) != _shapes(backbone):
        name = plugins.name_of("backbone", type(backbone.config))
        raise InputError(
            f"the backbone {name} builds another network from its config than the one to be saved: "
            "everything that determines its weights' shapes must be a field of the config"
        )
    return description


def _shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in module.state_dict().items()}
