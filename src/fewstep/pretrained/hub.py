"""Find the folder of a published network: on this machine, in a release, or on the hub."""

import hashlib
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path, PurePath, PurePosixPath

from fewstep.download import fetch, home
from fewstep.errors import InputError
from fewstep.paths import MAX_TEXT, expand_home
from fewstep.pretrained.folder import (
    CONFIG,
    FORMS,
    INDEX,
    NETWORK_FOLDERS,
    SCHEDULER,
    STEM,
    find_config,
)
from fewstep.pretrained.unet_config import check_class

EMA = "ddpm_ema_cifar10"
EMA_URL = f"https://github.com/VainF/Diff-Pruning/releases/download/v0.0.1/{EMA}.zip"
AVERAGED = {"google/ddpm-cifar10-32": EMA}
"""Networks on the hub whose averaged (EMA) weights, which score better, are in another release."""


def find_folder(name: str) -> Path:
    """The folder of a network: a path, a name in `home()/weights`, or OWNER/NAME on the hub.

    A missing network of the hub is downloaded into the hub's cache.

    Raises: InputError if there is no such folder; the message names the path where to put it.
    """
    path, folder = Path(expand_home(name)), home() / "weights"
    if path.is_file():
        raise InputError(
            f"{name} is a file, but diffusers: takes the folder with the network's {CONFIG} and "
            f"weights: write diffusers:{path.parent}"
        )
    local = find_local(name)
    if local is not None:
        if name in AVERAGED and local == folder / AVERAGED[name]:
            print(f"fewstep: {name}: using the averaged weights in {local}", file=sys.stderr)
        return local
    if name == EMA:
        return _download_release(folder / name)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise InputError(
            f"there is no folder {name}, nor one of that name in {folder}; for a network on the "
            "hub write OWNER/NAME"
        )
    return _from_hub(name, otherwise=f"put its folder at {folder / name}")


def find_local(name: str) -> Path | None:
    """The folder of a network that is at a path or in `home()/weights`; None if it is not."""
    path, folder = Path(expand_home(name)), home() / "weights"
    if path.is_dir():
        return path
    names = (AVERAGED[name], name) if name in AVERAGED else (name,)
    return next((folder / each for each in names if _has_network(folder / each)), None)


def _has_network(folder: Path) -> bool:
    """Whether the folder has a network's settings, itself or in unet/ or the like."""
    return any(path.is_file() for path in (folder / CONFIG, *folder.glob(f"*/{CONFIG}")))


def _from_hub(name: str, *, otherwise: str) -> Path:
    """The folder in the hub's cache, which is downloaded if it is missing.

    `otherwise` completes error messages: what to do without a network. Raises InputError for a
    network that fewstep does not read, before its weights are downloaded.
    """
    settings = [INDEX, SCHEDULER, f"scheduler/{SCHEDULER}"]
    settings += [_join(place, CONFIG) for place in NETWORK_FOLDERS]
    check_class(find_config(_download(name, settings, otherwise)))
    for form in FORMS:
        files = [form.index, form.single, *form.shards]
        weights = [_join(place, file) for place in NETWORK_FOLDERS for file in files]
        folder = _download(name, [*settings, *weights], otherwise)
        if any(path.match(form.index) or path.match(form.single) for path in folder.rglob("*")):
            return folder
    raise _failure(name, f"it holds no {STEM}.safetensors or .bin", otherwise)


def _download(name: str, patterns: list[str], otherwise: str) -> Path:
    """The folder in the hub's cache, with all files that match one of `patterns`."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise InputError(
            f"downloading {name} needs huggingface-hub: pip install 'fewstep[hub]', or {otherwise}"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    # the client's own errors, those of its HTTP library, and the system's
    except Exception as error:
        raise _failure(name, str(error).strip().partition("\n")[0], otherwise) from error


def _failure(name: str, problem: str, otherwise: str) -> InputError:
    return InputError(
        f"there is no folder {name}, and downloading huggingface.co/{name} failed ({problem}); go "
        f"online, or {otherwise}"
    )


def _join(folder: str, file: str) -> str:
    return str(PurePosixPath(folder, file))


def _download_release(folder: Path) -> Path:
    """Download and unpack the averaged weights."""
    # with the process number, so that ranks do not remove each other's archive
    archive = folder.with_name(f"{folder.name}.{os.getpid()}.zip")
    try:
        # no digest was published, and an empty one matches all
        fetch(EMA_URL, "sha256:", archive, otherwise=f"unpack it as {folder}")
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        message = f"{EMA}.zip has SHA-256 {digest}; none was published to compare it with"
        print(f"fewstep: {message}", file=sys.stderr)
        _unpack(archive, folder)
    finally:
        archive.unlink(missing_ok=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack configs and weights into `folder`, which appears only when complete."""
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(archive) as archive_file:
            claim = sum(member.file_size for member in archive_file.infolist())
            if claim > 8 * archive.stat().st_size + MAX_TEXT:  # weights hardly shrink
                raise InputError(f"{EMA_URL} is no archive of weights: it claims {claim:,} bytes")
            for member in archive_file.infolist():
                path = PurePosixPath(member.filename)
                if path.name not in (CONFIG, SCHEDULER) and not _is_weights(path):
                    continue
                # the archive's paths are not used: they could point outside the folder
                places = (*NETWORK_FOLDERS, "scheduler")
                inner = path.parent.name if path.parent.name in places else ""
                target = temporary / inner / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive_file.open(member) as packed, target.open("wb") as file:
                    shutil.copyfileobj(packed, file)
        if not any(_is_weights(path) for path in temporary.rglob("*")):
            raise InputError(f"{EMA_URL} holds no {STEM}.safetensors or .bin")
        if not folder.is_dir():  # another rank may have been first
            temporary.replace(folder)
    except zipfile.BadZipFile as error:
        raise InputError(f"{EMA_URL} is a damaged archive ({error}); try again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _is_weights(path: PurePath) -> bool:
    """Whether this is a weights file or a list of shards."""
    return any(
        path.match(pattern) for form in FORMS for pattern in (form.single, form.index, *form.shards)
    )
