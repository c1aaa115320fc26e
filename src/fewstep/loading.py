"""Load runs with their recipes, and the real images that they are measured against."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep import data, runs
from fewstep.assembly import read_data
from fewstep.data import ImageSet
from fewstep.distributed import device
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.recipe import Recipe, parse
from fewstep.runs import Weights


@dataclass(frozen=True)
class LoadedRun:
    """A generator with its name, address, recipe and training step."""

    name: str
    address: str
    """Run folder, weights file or `diffusers:...`."""
    generator: Generator
    recipe: Recipe | None
    """None if the weights file contains no recipe, as in checkpoints of other projects."""
    step: int | None
    """Training step of the weights; None for the last step of the run."""
    data_hash: str | None = None
    """Fingerprint of the images that it was trained on; None if it is not known."""


def load_run(address: str | Path, *, name: str = "", weights: Weights = "ema") -> LoadedRun:
    """Load a run with its recipe. By default its name is that of its folder or file."""
    generator = runs.load(address, weights=weights)
    note = runs.describe(address, weights=weights)
    name = name or Path(address).resolve().name
    if "step" in note:
        name += f" (best, step {note['step']:,})"
    recipe = _parse_recipe(note.get("recipe"), address)
    data_hash = note.get("pins", {}).get("data")
    return LoadedRun(name, str(address), generator, recipe, note.get("step"), data_hash)


def _parse_recipe(table: Mapping[str, Any] | None, address: str | Path) -> Recipe | None:
    """The recipe in a weights file, which says how it was trained; None if it cannot be read."""
    try:
        return parse(table, allow_code=()) if table else None
    except InputError as error:
        message = f"the recipe in {address} cannot be read by this version, and is ignored: {error}"
        warnings.warn(message, stacklevel=2)
        return None


def load_runs(addresses: Sequence[str], *, weights: Weights = "ema") -> list[LoadedRun]:
    """Load runs under unique names onto the device that fewstep uses.

    Raises: InputError if there are none, if one is listed twice, or if they generate images of
    different shapes or classes, or only some of them read prompts.
    """
    if not addresses:
        raise InputError("compare needs runs: fewstep compare RUN RUN ...")
    if len({Path(address).resolve() for address in addresses}) < len(addresses):
        raise InputError(f"a run is named twice in {', '.join(addresses)}; name each run once")
    short_names = [Path(address).resolve().name for address in addresses]
    loaded: list[LoadedRun] = []
    for address, name in zip(addresses, short_names, strict=True):
        unique_name = name if short_names.count(name) == 1 else address
        loaded.append(load_run(address, name=unique_name, weights=weights))
        loaded[-1].generator.to(device())
    kinds = {(run.generator.image_shape, run.generator.spec.classes) for run in loaded}
    if len(kinds) > 1:
        shapes = "; ".join(
            f"{run.name}: {run.generator.image_shape}, {run.generator.spec.classes} classes"
            for run in loaded
        )
        raise InputError(
            f"these runs generate images of different shapes or classes ({shapes}); compare only "
            "runs of the same shape and classes"
        )
    reads_text = {run.name: run.generator.spec.text is not None for run in loaded}
    if len(set(reads_text.values())) > 1:
        with_text = ", ".join(name for name, reads in reads_text.items() if reads)
        without = ", ".join(name for name, reads in reads_text.items() if not reads)
        raise InputError(
            f"{with_text} reads prompts, and {without} does not: compare only runs that do, or "
            "only runs that do not"
        )
    for run in loaded:
        if difference := loaded[0].generator.spec.class_difference(run.generator.spec):
            raise InputError(
                f"{loaded[0].name} and {run.name} have different classes: {difference}; compare "
                "only runs of the same classes in the same order"
            )
    return loaded


def reference_images(
    run: LoadedRun, name: str | None = None, *, split: str | None = None
) -> ImageSet:
    """The real images to measure `run` against, or another `split` of their set.

    They are the data set `name`, or `name:path`, with the size and channels of the run's images;
    without a `name`, the set that the run was trained on. Raises InputError if `name` is None and
    the run has no recipe.
    """
    if name:
        shape = run.generator.image_shape
        set_name, path = data.split_path(name)
        size = shape[-1] if len(shape) == 3 else None
        images = data.load(set_name, split=split or "train", size=size, path=path)
        images = images.with_channels(shape[0]) if len(shape) == 3 else images
        return _with_own_name(run, images)
    if run.recipe is None:
        raise InputError(
            f"{run.address} contains no recipe, so its training data are unknown; give --data NAME"
            ", or --data folder:PATH for a folder of images"
        )
    config = run.recipe.data
    path = config.path and _find_moved(run, config.path)
    config = replace(config, path=path, split=split or config.split)
    images = _with_own_name(run, read_data(replace(run.recipe, data=config)))
    if split is None and run.data_hash not in (None, images.fingerprint):
        raise InputError(
            f"the images of {config.path or config.name} are not those that {run.address} was "
            f"trained on (fingerprints {images.fingerprint[:12]} and {run.data_hash[:12]}): "
            f"restore them, or name a set of images by --data NAME or --data folder:PATH"
        )
    return images


def _find_moved(run: LoadedRun, path: str) -> str:
    """The path of a run's images: as in its recipe, or below a folder that contains the run.

    Raises: InputError if it does not exist.
    """
    above = Path(run.address).resolve().parents
    for place in (Path(path), *(folder / path for folder in above)):
        if place.exists():
            return str(place)
    assert run.recipe
    name = run.recipe.data.name
    raise InputError(
        f"{path}, with the images that {run.address} was trained on, does not exist: if they have "
        f"moved, name their folder by --data {name}:PATH (in train, data.path=PATH)"
    )


def _with_own_name(run: LoadedRun, images: ImageSet) -> ImageSet:
    """The images, under the name of the run's own set if they are the same: scores contain it."""
    path = run.recipe and run.recipe.data.path
    if (
        path
        and run.recipe
        and run.recipe.data.name == "folder"
        and run.data_hash == images.fingerprint
    ):
        return replace(images, name=Path(path).name)
    return images
