"""Save and load generators, and hash their weights; addresses of generators."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fewstep import __version__, plugins
from fewstep.errors import InputError
from fewstep.files import tensor_digest
from fewstep.generator import Generator
from fewstep.guidance import unguided
from fewstep.models import find_model
from fewstep.paths import check_kind, expand_home
from fewstep.run_folder import Run
from fewstep.stored_weights import Dtype, store_weights
from fewstep.text.base import encoder_hash
from fewstep.weights_file import (
    build_generator,
    check_loadable,
    method_name,
    read_description,
    read_weights_file,
    write_weights_file,
)

Weights = Literal["ema", "raw", "best"]
STUDENT_STEPS = (1, 2, 4)
TEACHER_STEPS = (16,)


def save_generator(
    path: Path,
    generator: Generator,
    recipe: Mapping[str, Any] | None,
    pins: Mapping[str, str],
    *,
    step: int | None = None,
    license: str = "",
    scores: Sequence[Mapping[str, Any]] = (),
    dtype: Dtype = "f32",
) -> None:
    """Write weights with their description; equal weights and recipes give equal bytes.

    `recipe` is the recipe's table, `pins` are the hashes of the data and weights that training
    used, `step` is the training step of the weights, None for the last, and `scores` are tables of
    `Score`. `dtype` rounds the stored weights; `load` restores them
    to float32. For int8, `export.precision.round_weights` corrects the biases first.

    Raises: InputError for a generator that `load` could not build again, or weights that are too
    large for float16.
    """
    note: dict[str, Any] = {} if step is None else {"step": step}
    note |= {"license": license} if license else {}
    note |= {"scores": [dict(score) for score in scores]} if scores else {}
    note |= {
        "description": check_loadable(generator),
        "recipe": None if recipe is None else dict(recipe),
        "pins": dict(pins),
        "version": __version__,
    }
    write_weights_file(path, store_weights(generator.state_dict(), dtype), note)


def load(
    address: str | Path,
    *,
    weights: Weights = "ema",
    allow_code: Collection[str] = (),
    verify: bool = True,
) -> Generator:
    """Load the generator at an address: a run folder, a weights file, a model that comes with a
    package such as `fewstep:digits`, or `source:rest`.

    Weights may use classes from outside this package. Loading such weights runs code of these
    classes, so `allow_code` must list their modules or packages.

    Without `verify`, the file is not compared with the SHA-256 in it, which takes 0.1 s for 55
    million weights, and files without one are read too. Trainings that resume always compare it.

    Raises: InputError for an address that does not exist, a file that is damaged or was not
    written by fewstep, or code that is not allowed.
    """
    address = expand_home(str(address))
    path = Path(address)
    if weights == "raw" and path.is_dir():
        check_kind(path, "run")
        return Run(path).raw_generator(allow_code=allow_code)
    file = _find_file(address, weights)
    if file is None:
        source, _, rest = str(address).partition(":")
        return plugins.resolve("source", source)(rest)
    tensors, note = read_weights_file(file, verify=verify)
    return build_generator(note, tensors, file, allow_code)


def describe(address: str | Path, *, weights: Weights = "ema") -> dict[str, Any]:
    """The metadata of a weights file: description, recipe, pins, version, licence and scores.

    Empty for an address `source:rest`.
    """
    file = _find_file(address, weights)
    return {} if file is None else read_description(file)


def default_steps(generator: Generator, recipe: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Numbers of sampling steps to use unless others are requested, fewest first.

    They are those of the grid; if it supports any, 1, 2 and 4 for a student, and 16 for a teacher.
    """
    if generator.grid.counts:
        return generator.grid.counts
    is_teacher = recipe is None or method_name(recipe) in ("denoise", "reflow")
    return TEACHER_STEPS if is_teacher else STUDENT_STEPS


def _find_file(address: str | Path, weights: Weights) -> Path | None:
    """The weights file of a run, of itself, or of a packaged model; None for `source:rest`."""
    address = expand_home(str(address))
    path = Path(address)
    if ":" in str(address) and not path.exists():
        return _find_packaged(str(address), weights)
    check_kind(path, "run")
    if not path.is_dir():
        if weights != "ema":
            raise InputError(
                f'weights="{weights}" needs a run folder, and {address} is a file; give the folder'
            )
        return path
    run = Run(path)
    file = run.best_file if weights == "best" else run.model_file
    if not file.exists():
        remedy = (
            "set evaluate.every in its recipe to evaluate during training"
            if weights == "best"
            else "train it until the first checkpoint, every fit.save_every steps"
        )
        raise InputError(f"{run.folder} has no {file.name}: {remedy}")
    return file


def _find_packaged(address: str, weights: Weights) -> Path | None:
    """The weights file of a packaged model; None for the checkpoint of a known source."""
    file, source = find_model(address), address.partition(":")[0]
    if file is None and source not in plugins.names("source"):
        choices = ", ".join([*plugins.names("source"), *plugins.names("models")])
        raise InputError(
            f"{address}: no such file, and {source!r} is not a known source; known: {choices}"
        )
    if weights != "ema":
        raise InputError(
            f'weights="{weights}" needs a run folder; {address} is a checkpoint with one kind of '
            "weights only"
        )
    return file


def network_hash(generator: Generator) -> str:
    """SHA-256 of a generator's network with its process and parametrization.

    Unlike `weights_hash`, it does not depend on sampler, grid, guidance and names of classes: the
    same network has the same hash however it is sampled. It covers the text encoder, whose tokens
    the network was trained on.
    """
    description, backbone = generator.describe(), unguided(generator.denoiser.backbone)
    guidance = ("guidance", "guidance_interval", "autoguidance", "negative")
    sampling = ("spec", "decoder", *guidance, "step", "grid", "packages")
    parts = {key: value for key, value in description.items() if key not in sampling}
    if generator.spec.text is not None:
        parts["text"] = encoder_hash(generator.spec.text)
    return tensor_digest(backbone.state_dict(), header=json.dumps(parts, sort_keys=True))


def weights_hash(generator: Generator) -> str:
    """SHA-256 of a generator's description and weights."""
    header = json.dumps(generator.describe(), sort_keys=True)
    return tensor_digest(generator.state_dict(), header=header)
