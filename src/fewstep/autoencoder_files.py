"""Save and load autoencoders; addresses of autoencoders."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep import __version__, plugins
from fewstep.autoencoders import Autoencoder, AutoencoderConfig
from fewstep.backbones.outline import find_misfit, outline_of
from fewstep.errors import InputError
from fewstep.finite import nonfinite_weight
from fewstep.paths import check_kind, expand_home
from fewstep.run_folder import Run
from fewstep.sample_spec import SampleSpec
from fewstep.schema import preset_names
from fewstep.tables import from_table
from fewstep.weights_file import AUTOENCODER, read_weights_file, write_weights_file


@dataclass(frozen=True)
class _Description:
    config: AutoencoderConfig
    shape: tuple[int, ...]


def save_autoencoder(
    path: Path,
    autoencoder: Autoencoder,
    recipe: Mapping[str, Any] | None,
    pins: Mapping[str, str],
) -> None:
    """Write an autoencoder with its description; equal weights and recipes give equal bytes.

    `recipe` is the recipe's table, and `pins` are the hashes of the data that training used.
    """
    plugins.check_importable("autoencoder", type(autoencoder.config))
    note = {
        "kind": AUTOENCODER,
        "description": autoencoder.describe(),
        "recipe": None if recipe is None else dict(recipe),
        "pins": dict(pins),
        "version": __version__,
    }
    write_weights_file(path, autoencoder.state_dict(), note)


def load_autoencoder(
    address: str | Path,
    *,
    shape: tuple[int, ...] | None = None,
    allow_code: Collection[str] = (),
) -> Autoencoder:
    """Load the autoencoder at an address for images of `shape`, frozen.

    The address is a run folder or weights file of `autoencode`, or `diffusers:PATH`. The shape of
    the former is that of its training set, which `shape`, if it is not None, must equal.

    Raises: InputError for an address without an autoencoder, one that is damaged, or another shape.
    """
    address = expand_home(str(address))
    path = Path(address)
    source, colon, rest = address.partition(":")
    if colon and not path.exists():
        return _load_pinned(source, rest, shape, address)
    if not address or not path.exists() and address not in preset_names():
        raise InputError(
            f"{address or 'the autoencoder'} does not exist: give a run of autoencode, its weights "
            "file, or diffusers:PATH"
        )
    check_kind(path, "run")
    file = Run(path).model_file if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise InputError(
            f"{path} has no {file.name}: train it until the first checkpoint, every "
            "fit.save_every steps"
        )
    tensors, note = read_weights_file(file)
    if note.get("kind") != AUTOENCODER:
        raise InputError(
            f"{address} is no autoencoder: train one, such as `fewstep train cifar10-autoencoder`, "
            "or give diffusers:PATH"
        )
    try:
        autoencoder = _build(note, tensors, allow_code)
    except (InputError, RuntimeError) as error:
        raise InputError(f"{file}: {' '.join(str(error).split())}") from error
    name = nonfinite_weight(autoencoder)
    if name or not bool((autoencoder.decoder.std > 0).all()):
        problem = f"{name} contains NaN or infinite values" if name else "decoder.std contains 0"
        raise InputError(
            f"the autoencoder {address} cannot be used: its weight {problem}, so its file is "
            "damaged or its training diverged; use other weights"
        )
    if shape is not None and autoencoder.shape != tuple(shape):
        raise InputError(
            f"the autoencoder {address} was trained on images of shape {autoencoder.shape}, and "
            f"these have shape {tuple(shape)}: resize them (data.size in recipes), or train another"
        )
    return _freeze(autoencoder)


def _build(
    note: Mapping[str, Any], tensors: dict[str, Any], allow_code: Collection[str]
) -> Autoencoder:
    table = note.get("description", {})
    parts = from_table(_Description, table, "autoencoder", allow_code=allow_code)
    SampleSpec(parts.shape)  # or raises its error
    shapes = {name: value.shape for name, value in tensors.items()}
    if parts.config.is_pinned:
        raise InputError("its description names a network elsewhere: give that one's address")
    build = lambda: Autoencoder(parts.config, parts.shape)  # noqa: E731
    misfit = find_misfit(outline_of(build, parts.config, tensors=len(tensors)), shapes)
    if misfit:
        raise InputError(f"its weights do not fit its description: {misfit} of this description")
    autoencoder = build()
    autoencoder.load_state_dict(tensors)
    return autoencoder


def _load_pinned(
    source: str, rest: str, shape: tuple[int, ...] | None, address: str
) -> Autoencoder:
    """The autoencoder of another project."""
    if source != "diffusers":
        raise InputError(
            f"{address}: no such file; give a run of autoencode, its weights file, or "
            "diffusers:PATH"
        )
    if shape is None:
        raise InputError(f"{address} needs the shape of the images: name a data set")
    config = plugins.resolve("autoencoder", source)(rest)
    autoencoder = Autoencoder(config, tuple(shape))
    return _freeze(autoencoder)


def _freeze(autoencoder: Autoencoder) -> Autoencoder:
    return autoencoder.eval().requires_grad_(False)
