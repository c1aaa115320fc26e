"""Published weights of networks that measure: where they are looked for, and where they come from.

They lie under `home()/weights`. What is missing is downloaded and checked against its published
digest; a machine without a network is told which file goes where. No pickle is run.
"""

import hashlib
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.download import fetch, home
from fewstep.errors import InputError

_TORCH = "https://download.pytorch.org/models/"
_LPIPS = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/"
)
_HEADS = {
    "squeeze": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class WeightsFile(NamedTuple):
    """A file of weights; `sha256` may be its first digits, as in file names of torch's hub."""

    url: str
    sha256: str
    also: tuple[str, ...] = ()
    """Other names that it is looked for under."""
    pinned: bool = False
    """Whether nothing but the published bytes will do."""

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.also, self.url.rsplit("/", 1)[1])


PUBLISHED = {
    "inception": WeightsFile(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        INCEPTION_SHA256,
        also=("pt_inception-2015-12-05-6726825d.pth",),
        pinned=True,  # or a score would be called FID that is none
    ),
    "squeezenet": WeightsFile(
        f"{_TORCH}squeezenet1_1-b8a52dc0.pth",
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        also=("squeezenet1_1-features.safetensors",),
    ),
    "alexnet": WeightsFile(
        f"{_TORCH}alexnet-owt-7be5be79.pth", "7be5be79", also=("alexnet-features.safetensors",)
    ),
    "vgg16": WeightsFile(
        f"{_TORCH}vgg16-397923af.pth", "397923af", also=("vgg16-features.safetensors",)
    ),
    "resnet56-cifar10": WeightsFile(
        "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
        "resnet56-4bfd9763.th",
        "4bfd9763",
        also=("resnet56-cifar10.safetensors",),
    ),
    **{
        f"lpips-{trunk}": WeightsFile(
            f"{_LPIPS}{trunk}.pth", sha256, also=(f"lpips-{trunk}-heads-v0.1.safetensors",)
        )
        for trunk, sha256 in _HEADS.items()
    },
}


def there(name: str) -> Path | None:
    """The file of these weights, if one lies on this machine."""
    candidates = (home() / "weights" / file for file in PUBLISHED[name].files)
    return next((path for path in candidates if path.is_file()), None)


def weights(name: str) -> dict[str, Tensor]:
    """The tensors of `name`, one of PUBLISHED, by their published names.

    Raises: InputError where the file is missing and cannot be had, damaged, or not the pinned one.
    """
    told, path = PUBLISHED[name], there(name)
    folder = home() / "weights"
    if path is None:
        path = folder / told.files[-1]
        otherwise = f"put {' or '.join(told.files)} into {folder}"
        fetch(told.url, f"sha256:{told.sha256}", path, otherwise=otherwise)
    if told.pinned:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != told.sha256:
            raise InputError(
                f"{path} has SHA256 {found} instead of the published {told.sha256}; put the "
                f"file of {told.url} there"
            )
    return _read(path)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is damaged or no file of weights: {error}") from error
    state = state.get("state_dict", state)  # some files hold more than weights
    return {key.removeprefix("module."): value for key, value in state.items()}
