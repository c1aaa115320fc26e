"""Trained models that come with fewstep and other packages, such as `fewstep:digits`.

`PACKAGE:NAME` is the weights file NAME.safetensors in the folder that PACKAGE registers under the
noun `models`. A checkout of fewstep has more models, in its folder `models`, which are too large
for the package.
"""

from pathlib import Path

from fewstep import plugins
from fewstep.errors import InputError, did_you_mean

FOLDER = Path(__file__).parent
"""The models of fewstep itself. README.md in it has their data and licences."""
_ROOT = FOLDER.parents[2]
_IS_CHECKOUT = FOLDER == _ROOT / "src/fewstep/models" and (_ROOT / "pyproject.toml").is_file()
CHECKOUT_FOLDER = _ROOT / "models" if _IS_CHECKOUT else None
"""The models of fewstep that only a checkout has, with a README.md too; None in an installation."""


def model_addresses() -> list[str]:
    """The addresses of all models, by package and name."""
    return [
        f"{package}:{file.stem}"
        for package in plugins.names("models")
        for file in _files(package).values()
    ]


def find_model(address: str | Path) -> Path | None:
    """The weights file of a model; None if `address` does not begin with a package of models.

    Raises: InputError if the package has no model of that name.
    """
    package, colon, name = str(address).partition(":")
    if not colon or package not in plugins.names("models"):
        return None
    files = _files(package)
    if name not in files:
        choices = ", ".join(f"{package}:{stem}" for stem in sorted(files))
        hint = did_you_mean(name, files)
        more = "; a checkout of fewstep has more" * (package == "fewstep" and not CHECKOUT_FOLDER)
        raise InputError(
            f"{package} has no model {name!r}{hint} (choose one of {choices}{more})"
            if files
            else f"{package} has no model {name!r}, nor any other: its installation is incomplete"
        )
    return files[name]


def _files(package: str) -> dict[str, Path]:
    """The models of a package by their names."""
    folders = [CHECKOUT_FOLDER] if package == "fewstep" and CHECKOUT_FOLDER else []
    folders.append(Path(plugins.resolve("models", package)))  # whose names come first
    files = (file for folder in folders for file in sorted(folder.glob("*.safetensors")))
    return {file.stem: file for file in files}
