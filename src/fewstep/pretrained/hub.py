"""Find the folder of a published network: on this machine, in a release, or on the hub."""

import hashlib
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

from fewstep.download import fetch, home
from fewstep.errors import InputError

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
EMA = "ddpm_ema_cifar10"
EMA_URL = f"https://github.com/VainF/Diff-Pruning/releases/download/v0.0.1/{EMA}.zip"
AVERAGED = {"google/ddpm-cifar10-32": EMA}
"""Networks of the hub whose averaged (better) weights were published elsewhere."""


def find_folder(name: str) -> Path:
    """The folder at a path, in `home()/weights`, or in the hub's cache, downloaded if missing.

    Raises: InputError if there is none, with the place to put it.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    folder = home() / "weights"
    averaged = folder / AVERAGED.get(name, "")
    if name in AVERAGED and _has_files(averaged):
        print(f"fewstep: {name}: using the averaged weights in {averaged}", file=sys.stderr)
        return averaged
    if _has_files(folder / name):
        return folder / name
    if name == EMA:
        return _download_release(folder / name)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise InputError(
            f"there is no folder {name}, nor one of that name in {folder}; a network on the hub is "
            "called OWNER/NAME"
        )
    return _from_hub(name, otherwise=f"put its folder at {folder / name}")


def _has_files(folder: Path) -> bool:
    return any(path.is_file() for path in folder.rglob("*"))


def _from_hub(name: str, *, otherwise: str) -> Path:
    """The folder in the hub's cache, downloaded if missing, with one file of weights."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise InputError(
            f"downloading {name} needs huggingface-hub: pip install 'fewstep[hub]', or {otherwise}"
        ) from None
    settings = [CONFIG, f"unet/{CONFIG}", SCHEDULER, f"scheduler/{SCHEDULER}"]
    problem = f"it holds neither {' nor '.join(WEIGHTS)}"
    for weights in WEIGHTS:
        patterns = [*settings, weights, f"unet/{weights}"]
        try:
            folder = Path(snapshot_download(name, allow_patterns=patterns))
        # the client's own errors, those of its HTTP library, and the system's
        except Exception as error:
            problem = str(error).strip().partition("\n")[0]
            continue
        if any(folder.rglob(weights)):
            return folder
    raise InputError(
        f"there is no folder {name}, and downloading huggingface.co/{name} failed ({problem}); go "
        f"online, or {otherwise}"
    )


def _download_release(folder: Path) -> Path:
    """Download and unpack the averaged weights."""
    # the process number: the ranks of a job must not remove each other's archive
    archive = folder.with_name(f"{folder.name}.{os.getpid()}.zip")
    try:
        # no digest was published: the empty prefix matches any
        fetch(EMA_URL, "sha256:", archive, otherwise=f"unpack it as {folder}")
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        note = f"{EMA}.zip has SHA256 {digest}; none was published to compare it with"
        print(f"fewstep: {note}", file=sys.stderr)
        _unpack(archive, folder)
    finally:
        archive.unlink(missing_ok=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack configs and weights into `folder`, which appears only when complete."""
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member in zipped.infolist():
                path = PurePosixPath(member.filename)
                if path.name not in (CONFIG, SCHEDULER, *WEIGHTS):
                    continue
                # only the name: paths inside an archive are not trusted
                inner = path.parent.name if path.parent.name in ("unet", "scheduler") else ""
                (part / inner).mkdir(parents=True, exist_ok=True)
                with zipped.open(member) as packed, (part / inner / path.name).open("wb") as file:
                    shutil.copyfileobj(packed, file)
        if not any(path.name in WEIGHTS for path in part.rglob("*")):
            raise InputError(f"{EMA_URL} holds none of {', '.join(WEIGHTS)}")
        if not folder.is_dir():  # another rank may have been first
            part.replace(folder)
    except zipfile.BadZipFile as error:
        raise InputError(f"{EMA_URL} gave a damaged archive ({error}); try again") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
