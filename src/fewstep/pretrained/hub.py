"""Where the folder of a published network lies: on this machine, in a release, on the hub."""

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
"""Networks of the hub whose averaged weights, the better ones, were published elsewhere."""


def found(name: str) -> Path:
    """The folder that is meant: a path, or else one under `home()/weights`, or the hub's.

    Raises: InputError where there is none, saying where it may be put.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    kept = home() / "weights"
    averaged = kept / AVERAGED.get(name, "")
    if name in AVERAGED and averaged.is_dir():
        print(f"fewstep: {name}: taking the averaged weights in {averaged}", file=sys.stderr)
        return averaged
    if (kept / name).is_dir():
        return kept / name
    if name == EMA:
        return _released(kept / name)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise InputError(
            f"there is no folder {name}, nor one of that name in {kept}; a network of the hub is "
            "called OWNER/NAME"
        )
    return _from_hub(name, otherwise=f"put its folder at {kept / name}")


def _from_hub(name: str, *, otherwise: str) -> Path:
    """The folder in the hub's cache, downloaded where it is missing: one file of weights."""
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise InputError(
            f"downloading {name} needs huggingface-hub: pip install 'fewstep[hub]', or {otherwise}"
        ) from None
    settings = [CONFIG, f"unet/{CONFIG}", SCHEDULER, f"scheduler/{SCHEDULER}"]
    why = f"it holds neither {' nor '.join(WEIGHTS)}"
    for weights in WEIGHTS:
        wanted = [*settings, weights, f"unet/{weights}"]
        try:
            folder = Path(snapshot_download(name, allow_patterns=wanted))
        # the client raises errors of its own, of what carries it, and of the system
        except Exception as error:
            why = str(error).strip().partition("\n")[0]
            continue
        if any(folder.rglob(weights)):
            return folder
    raise InputError(
        f"there is no folder {name}, and huggingface.co/{name} cannot be had ({why}); go online, "
        f"or {otherwise}"
    )


def _released(folder: Path) -> Path:
    """The folder of the averaged weights, downloaded and unpacked."""
    # the process number: the ranks of a job must not remove each other's archive
    archive = folder.with_name(f"{folder.name}.{os.getpid()}.zip")
    try:
        # no digest was published; an empty one fits anything
        fetch(EMA_URL, "sha256:", archive, otherwise=f"unpack it as {folder}")
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        told = f"SHA256 {digest}; none is known to compare it with"
        print(f"fewstep: {EMA}.zip has {told}", file=sys.stderr)
        _unpack(archive, folder)
    finally:
        archive.unlink(missing_ok=True)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Settings and weights alone, into `folder`, which appears only when whole."""
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member in zipped.infolist():
                path = PurePosixPath(member.filename)
                if path.name not in (CONFIG, SCHEDULER, *WEIGHTS):
                    continue
                # by name, into `part` alone: a path inside an archive is not to be trusted
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
