"""Trained models that come with fewstep and other packages, such as `fewstep:digits`.

`PACKAGE:NAME` is the weights file NAME.safetensors in the folder that PACKAGE registers under the
noun `models`.
"""

from pathlib import Path

from fewstep import plugins
from fewstep.errors import InputError, did_you_mean

FOLDER = Path(__file__).parent
"""The models of fewstep itself. README.md in it has their data and licences."""


def model_addresses() -> list[str]:
    """The addresses of all models, by package and name."""
    return [
        f"{package}:{file.stem}"
        for package in plugins.names("models")
        for file in sorted(_folder(package).glob("*.safetensors"))
    ]


def find_model(address: str | Path) -> Path | None:
    """The weights file of a model; None if `address` does not begin with a package of models.

    Raises: InputError if the package has no model of that name.
    """
    package, colon, name = str(address).partition(":")
    if not colon or package not in plugins.names("models"):
        return None
    files = {file.stem: file for file in _folder(package).glob("*.safetensors")}
    if name not in files:
        choices = ", ".join(f"{package}:{stem}" for stem in sorted(files))
        hint = did_you_mean(name, files)
        raise InputError(
            f"{package} has no model {name!r}{hint} (choose one of {choices})"
            if files
            else f"{package} has no model {name!r}, nor any other: its installation is incomplete"
        )
    return files[name]


def _folder(package: str) -> Path:
    """The folder of a package's models."""
    return Path(plugins.resolve("models", package))
