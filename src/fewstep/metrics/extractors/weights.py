"""Published weights of networks: their files, URLs and digests.

The files are in `home()/weights`. A missing file is downloaded and checked against its published
digest; if the download fails, the error names the file and its folder. Files are read without
running pickled code.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.download import fetch, home
from fewstep.errors import InputError
from fewstep.files import tensor_digest
from fewstep.paths import check_regular, open_regular
from fewstep.utf8_paths import utf8_source

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
    """A published file of weights."""

    url: str
    sha256: str
    """All digits, or only the first ones, as in file names of torch's hub."""
    aliases: tuple[str, ...] = ()
    """Other names under which the file is looked for."""
    exact: bool = False
    """Whether only the published bytes are accepted."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names under which the file is looked for; the last is the published one."""
        return (*self.aliases, self.url.rsplit("/", 1)[1])


PUBLISHED = {
    "inception": WeightsFile(
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
        "weights-inception-2015-12-05-6726825d.pth",
        INCEPTION_SHA256,
        aliases=("pt_inception-2015-12-05-6726825d.pth",),
        exact=True,  # with other weights, scores must not be called FID
    ),
    "squeezenet": WeightsFile(
        f"{_TORCH}squeezenet1_1-b8a52dc0.pth",
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        aliases=("squeezenet1_1-features.safetensors",),
    ),
    "alexnet": WeightsFile(
        f"{_TORCH}alexnet-owt-7be5be79.pth", "7be5be79", aliases=("alexnet-features.safetensors",)
    ),
    "vgg16": WeightsFile(
        f"{_TORCH}vgg16-397923af.pth", "397923af", aliases=("vgg16-features.safetensors",)
    ),
    "resnet56-cifar10": WeightsFile(
        "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models/"
        "resnet56-4bfd9763.th",
        "4bfd9763",
        aliases=("resnet56-cifar10.safetensors",),
    ),
    **{
        f"lpips-{trunk}": WeightsFile(
            f"{_LPIPS}{trunk}.pth", sha256, aliases=(f"lpips-{trunk}-heads-v0.1.safetensors",)
        )
        for trunk, sha256 in _HEADS.items()
    },
}


def find_weights(name: str) -> Path | None:
    """The weights file of `name`, one of PUBLISHED; None if it is not on this machine."""
    candidates = (home() / "weights" / file for file in PUBLISHED[name].files)
    return next((path for path in candidates if path.is_file()), None)


def load_weights(name: str) -> dict[str, Tensor]:
    """The tensors of `name`, one of PUBLISHED, by their published names.

    Raises: InputError if the file cannot be downloaded, is damaged, or is not the exact one.
    """
    published, path = PUBLISHED[name], find_weights(name)
    folder = home() / "weights"
    if path is None:
        path = folder / published.files[-1]
        otherwise = f"put {' or '.join(published.files)} into {folder}"
        fetch(published.url, f"sha256:{published.sha256}", path, otherwise=otherwise)
    # files of another name were converted by somebody, and have no published digest
    if published.exact or path.name == published.files[-1]:
        with open_regular(path) as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if not actual.startswith(published.sha256):
            raise InputError(
                f"{path} has SHA256 {actual} instead of the published {published.sha256}; put the "
                f"file of {published.url} there"
            )
    return _read(path)


def _read(path: Path) -> dict[str, Tensor]:
    check_regular(path)
    try:
        if path.suffix == ".safetensors":
            with utf8_source(path) as name:
                return load_file(name)
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)  # training checkpoints hold more than weights
        return {key.removeprefix("module."): value for key, value in state.items()}
    except Exception as error:  # torch raises errors of many types for damaged files
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is damaged or is not a weights file: {problem}") from error


Network = TypeVar("Network", bound=nn.Module)


def load_into(network: Network, state: dict[str, Tensor], name: str) -> Network:
    """Load `state` into the network and set it to evaluation mode.

    `name` is the weights file, for messages.  Raises: InputError if the weights do not fit.
    """
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"the weights file of {name} is for another network") from error
    return network.eval()


def weights_digest(network: nn.Module, header: str) -> str:
    """Sixteen hexadecimal digits of SHA-256 over `header` and all weights and buffers."""
    return tensor_digest(network.state_dict(), header=header)[:16]
