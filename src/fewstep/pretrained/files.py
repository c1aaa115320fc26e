"""Read weights files of any project without running code from them, and tell them apart.

Formats: safetensors; archives and older files of `torch.save`, by `torch.load(weights_only=True)`;
plain pickles of networks, by `pickles.read_pickle`.
"""

import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.errors import InputError
from fewstep.paths import check_kind, open_regular
from fewstep.pretrained.pickles import NetworkObject, read_pickle, unsafe_name
from fewstep.tensor_file import Unreadable, check_header
from fewstep.utf8_paths import utf8_source

Format = Literal["safetensors file", "PyTorch archive", "PyTorch file", "pickle", "unknown file"]
TORCH_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
"""The number at the start of files that torch.save wrote before 1.6, as a pickle stores it."""
OLD_PICKLE_STARTS = frozenset({b"(", b"c", b"}", b"]", b")"})
"""First bytes of pickles without a version: a mark, a global name, or an empty container."""


@dataclass(frozen=True)
class Layout:
    """A project's file, recognised by some of its keys."""

    project: str
    keys: frozenset[str]
    """Names of tensors, or of entries, all of which such a file has."""
    source: str = ""
    """The source that loads it, such as "lucidrains"; "" if none does."""
    remedy: str = "fewstep does not read it"
    """What to do if no source loads it."""


LAYOUTS = (
    Layout(
        "lucidrains' denoising-diffusion-pytorch",
        frozenset({"init_conv.weight", "time_mlp.1.weight", "final_res_block.mlp.1.weight"}),
        "lucidrains",
    ),
    Layout("NVIDIA's EDM", frozenset({"ema: a network"}), "edm"),
    Layout(
        "a state dict of NVIDIA's EDM",
        frozenset({"map_layer0.weight", "map_layer1.weight"}),
        remedy="load network-snapshot-*.pkl, which has the settings too, as edm:FILE",
    ),
    Layout(
        "a latent diffusion model",
        frozenset({"first_stage_model.encoder.conv_in.weight"}),
        remedy="fewstep has no latent diffusion models",
    ),
    Layout(
        "OpenAI's guided-diffusion",
        frozenset({"input_blocks.0.0.weight", "time_embed.0.weight", "out.2.weight"}),
        "openai",
    ),
    Layout(
        "diffusers",
        frozenset({"conv_in.weight", "time_embedding.linear_1.weight", "conv_out.weight"}),
        remedy=(
            "put it beside its config.json, as diffusion_pytorch_model.bin or .safetensors, and "
            "load the folder as diffusers:FOLDER"
        ),
    ),
    Layout(
        "the DDPM of ermongroup's ddim or pesser's pytorch_diffusion",
        frozenset({"temb.dense.0.weight", "conv_in.weight", "mid.block_1.conv1.weight"}),
        remedy="convert it to a folder of diffusers by the script in diffusers' repository",
    ),
    Layout(
        "score_sde_pytorch",
        frozenset({"all_modules.0.weight", "all_modules.1.weight"}),
    ),
)


def read_weights(path: Path) -> Any:
    """The content of a weights file: a state dict, or nested dicts and lists around tensors.

    Raises: InputError for a file that is missing, damaged, of another format, or that would run
    code when it is loaded; the code is not run.
    """
    match file_format(path):
        case "safetensors file":
            try:
                check_header(path)
                with utf8_source(path) as name:
                    return load_file(name)
            except (SafetensorError, OSError, Unreadable) as error:
                raise InputError(f"{path} is a damaged safetensors file: {error}") from error
        case "pickle":
            return _within_file(read_pickle(path), path)
        case "unknown file":
            raise InputError(f"{path} is {_unknown(path)}: give a weights file")
        case kind:
            return _within_file(_read_torch(path, kind), path)


def file_format(path: Path) -> Format:
    """The format of a file, from its first bytes.  Raises: InputError if it is missing."""
    if path.is_dir():
        check_kind(path, "checkpoint")
    try:
        with open_regular(path) as file:
            start = file.read(64)
            file.seek(-min(1, file.seek(0, os.SEEK_END)), os.SEEK_END)
            end = file.read()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    # the length of a safetensors header comes first, and its bytes can be those of a pickle
    if start[4:9] == b"\0\0\0\0{":
        return "safetensors file"
    if start.startswith(b"PK\x03\x04"):
        return "PyTorch archive"
    if start[:1] == b"\x80":
        return "PyTorch file" if TORCH_MAGIC in start else "pickle"
    # protocols 0 and 1, which Python 2 wrote, have no mark at their start
    if start[:1] in OLD_PICKLE_STARTS and end == b".":
        return "pickle"
    return "unknown file"


def describe_file(path: Path) -> str:
    """One line on a file that is not fewstep's own: its format, its keys, and how to load it."""
    kind = file_format(path)
    if kind == "unknown file":
        return f"{path} is {_unknown(path)}: give a run folder or a weights file"
    try:
        content = read_weights(path)
    except InputError as error:
        return str(error)
    names, layout = entry_names(content), find_layout(content)
    keys = ", ".join(names if len(names) < 6 else [*names[:4], f"{len(names) - 4} more"])
    start = f"{path} was not written by fewstep: it is a {kind} with keys {keys or 'none'}"
    if layout is None:
        return f"{start}, and a layout that fewstep does not know"
    remedy = f"load it as {layout.source}:{path}" if layout.source else layout.remedy
    return f"{start}, and looks like {layout.project}: {remedy}"


def find_layout(content: Any) -> Layout | None:
    """The project that wrote a file with this content; None if it is unknown."""
    if not isinstance(content, Mapping):
        return None
    entries = cast(Mapping[str, Any], content)
    networks = [key for key, item in entries.items() if isinstance(item, NetworkObject)]
    groups = [{f"{key}: a network" for key in networks}]
    groups += [set(entry_names(state)) for state in (entries, *entries.values())]
    layouts = (each for each in LAYOUTS if any(_has_names(group, each.keys) for group in groups))
    return next(layouts, None)


def entry_names(content: Any) -> list[str]:
    """The keys at the top of a file's content."""
    if isinstance(content, Mapping):
        return [str(key) for key in cast(Mapping[str, Any], content)]
    return []


def state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors of a network in a file's content, by name.

    They are at the top, or in the entry that has most of them, as in checkpoints of trainings.
    """
    if isinstance(content, NetworkObject):
        return content.tensors()
    if not isinstance(content, Mapping):
        return {}
    entries = cast(Mapping[Any, Any], content)
    return max(map(_tensors, (entries, *entries.values())), key=len)


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    items = cast(Mapping[Any, Any], content).items()
    # the states of optimisers are numbered
    return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}


def _has_names(names: set[str], keys: frozenset[str]) -> bool:
    """Whether `names` include all `keys`, with the same names of wrappers before each."""
    first = min(keys)
    prefixes = {name.removesuffix(first) for name in names if name.endswith(first)}
    outer = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    return any(all(prefix + key in names for key in keys) for prefix in outer)


def _within_file(content: Any, path: Path) -> Any:
    """The content, whose tensors must not claim more bytes than the file has."""
    tensors, queue = list[Tensor](), [content]
    visited = set[int]()
    while queue:
        item = queue.pop()
        if id(item) in visited:
            continue
        visited.add(id(item))
        if isinstance(item, Tensor):
            tensors.append(item)
        elif isinstance(item, NetworkObject):
            queue.append(item.attributes)
        elif isinstance(item, Mapping):
            queue.extend(cast(Mapping[Any, Any], item).values())
        elif isinstance(item, list | tuple):
            queue.extend(cast(list[Any], item))
    size = path.stat().st_size
    for tensor in tensors:
        claim = tensor.numel() * tensor.element_size()
        if claim > min(size, tensor.untyped_storage().nbytes()):
            raise InputError(
                f"{path} is damaged: a tensor of shape {tuple(tensor.shape)[:8]} claims more bytes "
                "than are stored for it"
            )
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) > 4 * size + (1 << 20):
        raise InputError(f"{path} is damaged: its tensors claim more bytes than the file has")
    return content


def _check_archive(path: Path) -> None:
    """Refuse an archive that is compressed: torch writes none, and its content may be any size."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError("its entries claim more bytes than the file has")


def _read_torch(path: Path, kind: str) -> Any:
    try:
        if kind == "PyTorch archive":
            _check_archive(path)
        mmap = kind == "PyTorch archive"
        with warnings.catch_warnings():  # of new pickle protocols, which fail if they matter
            warnings.filterwarnings("ignore", "Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise InputError(
                f"{path} is a {kind} of pickle protocol 4 or newer, which torch.load does not read "
                "with weights_only: save it again by torch.save without pickle_protocol"
            ) from None
        raise InputError(
            f"{path} is a {kind} that would run {unsafe_name(error)} when it is loaded; fewstep "
            "refuses it and did not run it: save the state dict alone"
        ) from None
    # torch raises many kinds of errors for damaged archives
    except Exception as error:
        problem = "it is no archive of torch.save" if _other_archive(path) else str(error)
        raise InputError(
            f"{path} is damaged or is not a weights file: {problem.strip().partition(chr(10))[0]}"
        ) from error


def _other_archive(path: Path) -> bool:
    """Whether this is an intact zip archive, but not one of torch."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not any(name.endswith("data.pkl") for name in archive.namelist())


def _unknown(path: Path) -> str:
    """What a file is that is neither weights nor a pickle."""
    return describe_text(path) or "neither a safetensors file, nor one of PyTorch, nor a pickle"


def describe_text(path: Path) -> str:
    """What a file is that a download left in place of weights; "" for any other."""
    with open_regular(path) as file:
        start = (file.read(256) or b"").lstrip().lower()
    if not start:
        return "an empty file"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS instead of the file, which `git lfs pull` fetches"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page instead of a file of weights"
    return ""
