"""The files in a folder of diffusers, in all forms in which they are published.

    FOLDER/config.json and its weights, or both in unet/ or unet_ema/
    FOLDER/scheduler_config.json, or in scheduler/

Weights are one file or shards with an index, as safetensors or as PyTorch's archives, and may be of
a variant such as fp16.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.checksums import read_checked_json
from fewstep.errors import InputError
from fewstep.files import EXPORT_RECORD, file_digest
from fewstep.paths import check_kind, identify, read_regular
from fewstep.pretrained.files import read_weights, state_dict

CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", "model_index.json"
STEM = "diffusion_pytorch_model"
AVERAGED, RAW = "unet_ema", "unet"
NETWORK_FOLDERS = (AVERAGED, RAW, "")
"""Where a folder's network may be, best first: weights averaged over the training, then the raw."""


@dataclass(frozen=True)
class Form:
    """A form in which weights are published: patterns of its files' names."""

    single: str
    """A single file."""
    index: str
    """The list of the shards."""
    shards: tuple[str, ...]
    variant: bool = False


def _form(kind: str, variant: str = "") -> Form:
    number = "?????-of-?????"
    if not variant:
        return Form(f"{STEM}.{kind}", f"{STEM}.{kind}.index.json", (f"{STEM}-{number}.{kind}",))
    # diffusers changed where the variant stands
    shards = (f"{STEM}.{variant}-{number}.{kind}", f"{STEM}-{number}.{variant}.{kind}")
    index = f"{STEM}.{kind}.index.{variant}.json"
    return Form(f"{STEM}.{variant}.{kind}", index, shards, variant=True)


FORMS = tuple(_form(kind, v) for v in ("", "fp16", "*") for kind in ("safetensors", "bin"))
"""All forms, best first."""


@dataclass(frozen=True)
class Files:
    """The files of one network."""

    config: Path
    weights: tuple[Path, ...]
    scheduler: Path | None


def find_config(folder: Path) -> Path:
    """The config of the network in `folder`, which may be the network's own folder.

    Raises: InputError if there is none, or the network works on latents.
    """
    places = [folder / name for name in NETWORK_FOLDERS]
    network = next((place for place in places if (place / CONFIG).is_file()), None)
    if network is None:
        raise InputError(_describe_other(folder))
    _check_pixels(folder)
    return network / CONFIG


def find_files(folder: Path) -> Files:
    """The files of the network in `folder`, which may be the network's own folder.

    Raises: InputError if there is no network, or it lacks weights.
    """
    config = find_config(folder)
    if config.parent == folder / AVERAGED:
        print(f"fewstep: {folder}: using the averaged weights in {AVERAGED}", file=sys.stderr)
    candidates = [
        root / inner / SCHEDULER for root in _roots(folder) for inner in ("scheduler", "")
    ]
    scheduler = next((path for path in candidates if path.is_file()), None)
    files = Files(config, _find_weights(config.parent), scheduler)
    _check_export(folder, [config, *files.weights, *([scheduler] if scheduler else [])])
    return files


def _check_export(folder: Path, files: list[Path]) -> None:
    """Raise InputError for a file that has changed since fewstep exported this folder."""
    record = folder / EXPORT_RECORD
    if not record.is_file():
        return
    remedy = f"export again, or delete {record} to use the folder as it is"
    digests = read_checked_json(record, remedy).get("sha256", {})
    for file in files:
        name = file.relative_to(folder).as_posix() if file.is_relative_to(folder) else ""
        if digests.get(name, "") not in ("", file_digest(file)):
            raise InputError(f"{file} has changed since it was exported: {remedy}")


def _roots(folder: Path) -> list[Path]:
    """Folders that may hold the scheduler: a checkpoint of a training leaves it to its parent."""
    nested = folder.name in (AVERAGED, RAW) or folder.name.startswith("checkpoint-")
    return [folder, *_roots(folder.parent)] if nested else [folder]


def _find_weights(network: Path) -> tuple[Path, ...]:
    for form in FORMS:
        # shards of a variant match the pattern of its whole files, so that the index comes first
        files = [*sorted(network.glob(form.index)), *sorted(network.glob(form.single))]
        if files:
            if form.variant:
                line = f"using {files[0].name}: there are no weights without a variant"
                print(f"fewstep: {network}: {line}", file=sys.stderr)
            return _shards(files[0]) if files[0].suffix == ".json" else (files[0],)
    raise InputError(
        f"{network} has no weights: it needs {STEM}.safetensors or .bin, one of a variant such as "
        f"{STEM}.fp16.safetensors, or shards with {STEM}.safetensors.index.json"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index lists.  Raises: InputError if one is missing."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise InputError(f"{index} is damaged: it has no weight_map of tensors to files")
    for name in names.values():
        if not isinstance(name, str) or name in ("", ".", "..") or re.search(r"[/\\\0]", name):
            raise InputError(
                f"{index} lists the file {str(name)[:60]!r}, but it can only name files beside it"
            )
    shards = sorted({index.parent / name for name in names.values()})
    for shard in shards:
        if not shard.is_file():
            raise InputError(f"{shard} is missing: {index.name} lists {len(shards)} files")
    return tuple(shards)


def read_tensors(paths: tuple[Path, ...]) -> dict[str, Tensor]:
    """The tensors of a network, by name.  Raises: InputError for damaged or unsafe files."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        state = state_dict(read_weights(path))
        if not state:
            raise InputError(f"{path} is not a weights file: it holds no tensors by name")
        tensors |= state
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """The settings in a JSON file.  Raises: InputError if it is damaged."""
    content = read_regular(path)
    try:
        settings = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged or is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a JSON object of settings")
    return settings


def read_index(folder: Path) -> dict[str, Any]:
    """The settings of the pipeline that a network in `folder` belongs to; empty if none."""
    path = next((root / INDEX for root in _roots(folder) if (root / INDEX).is_file()), None)
    return read_json(path) if path else {}


def _check_pixels(folder: Path) -> None:
    """Raise InputError for a pipeline whose network works on the latents of an autoencoder."""
    components = read_index(folder)
    encoders = [name for name in ("vae", "vqvae", "movq") if name in components]
    if encoders:
        raise InputError(
            f"{folder} is a {components.get('_class_name', 'pipeline')}: its network works on the "
            f"latents of an autoencoder ({encoders[0]}), and fewstep works on pixels"
        )


def _describe_other(folder: Path) -> str:
    """Why a folder holds no network that fewstep reads."""
    checkpoints = [path.name for path in folder.glob("checkpoint-*") if path.is_dir()]
    checkpoints.sort(key=lambda name: (len(name), name))  # checkpoint-1000 is after checkpoint-500
    if checkpoints:
        return (
            f"{folder} holds no finished network, but checkpoints of a training: choose one, such "
            f"as {folder / checkpoints[-1]}"
        )
    pipeline = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    if pipeline and RAW not in pipeline:
        name = pipeline.get("_class_name", "pipeline")
        return f"{folder} is a {name}, and fewstep reads pipelines with a UNet2DModel in {RAW}/"
    if identify(folder) != "diffusers":
        check_kind(folder, "checkpoint")
    return f"{folder} is no diffusers checkpoint: it lacks {CONFIG}, also in unet/"
