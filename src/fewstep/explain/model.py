"""What is explained: a run, or a recipe with an untrained network in place of a run's."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.assembly import allow_code
from fewstep.autoencoder_files import load_autoencoder
from fewstep.autoencoders import Autoencoder
from fewstep.data import ImageSet
from fewstep.data.published import find_published
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError, did_you_mean
from fewstep.generator import Generator
from fewstep.loading import LoadedRun, load_run, reference_images
from fewstep.planning.requirements import find_generator, stand_in
from fewstep.recipe import Recipe, read
from fewstep.runs import Weights, default_steps
from fewstep.schema import preset_names


@dataclass(frozen=True)
class Model:
    """What is explained. Unless `is_trained`, it is a recipe, and the weights of `run` are not."""

    run: LoadedRun
    is_trained: bool
    data: str | None = None
    """The images that the user named, as NAME, NAME:PATH or PATH; None for those of the recipe."""

    @property
    def name(self) -> str:
        return self.run.address

    @property
    def generator(self) -> Generator:
        return self.run.generator

    @property
    def recipe(self) -> Recipe | None:
        """None for a checkpoint of another project."""
        return self.run.recipe

    @property
    def recipe_table(self) -> dict[str, Any] | None:
        """The recipe as a table; None for a checkpoint of another project."""
        return self.recipe and self.recipe.table()

    @property
    def default_steps(self) -> int:
        """The smallest number of steps that it is sampled in."""
        return min(default_steps(self.generator, self.recipe_table))

    def with_generator(self, generator: Generator) -> "Model":
        """The same model, sampled as `generator` is."""
        return replace(self, run=replace(self.run, generator=generator))

    def images(self) -> ImageSet:
        """Images of the shape that it generates. Those of a recipe are not downloaded for it.

        Raises: InputError if they are missing, or not of that shape.
        """
        shape, recipe = self.generator.image_shape, self.recipe
        if len(shape) != 3:
            raise InputError(f"{self.name} generates points, not images")
        if recipe and not self.data:
            published = find_published(recipe.data.name, recipe.data.path)
            if published and published.missing(recipe.data.split):
                raise InputError(
                    f"the images of {recipe.data.name} are not on this machine: name others by "
                    "--data, or fetch them by `fewstep train`"
                )
        images = reference_images(self.run, self.data)
        if images.shape != shape:
            raise InputError(
                f"{self.name} generates images of shape {shape}, and those of {images.name} have "
                f"{images.shape}: name others by --data"
            )
        return images

    def autoencoder(self) -> Autoencoder:
        """The autoencoder that encodes images into the latents that it generates.

        Raises: InputError if it is missing, or is another one.
        """
        decoder = self.generator.decoder
        address = self.recipe and self.recipe.data.autoencoder
        assert decoder
        if not address:
            raise InputError(
                f"{self.name} generates latents, and its recipe names no data.autoencoder, which "
                "encodes images"
            )
        autoencoder = load_autoencoder(address, shape=decoder.shape)
        if decoder.autoencoder not in ("", autoencoder.hash):
            raise InputError(f"{address} is not the autoencoder that {self.name} was trained with")
        return autoencoder

    def teacher(self) -> Denoiser | None:
        """The network of the teacher, untrained if it is missing; None if it is not known."""
        if self.recipe is None or self.recipe.teacher is None:
            return None
        try:
            teacher = find_generator("teacher", self.recipe.teacher.load)[1]
        except InputError:  # it has been replaced since, or is damaged
            return None
        return teacher and teacher.denoiser


def load_model(address: str, *, weights: Weights = "ema", data: str | None = None) -> Model:
    """The run, weights file or checkpoint at an address, or the recipe of that name or file.

    Raises: InputError for an address that is none of these, a recipe that trains no generator, and
    one whose data, or whose teacher's network, are not known yet.
    """
    names, is_file = preset_names(), Path(address).suffix.lower() == ".toml"
    if not is_file and (":" in address or Path(address).exists()):
        return Model(load_run(address, weights=weights), True, data)
    if not is_file and address not in names:
        raise InputError(
            f"{address} is no run, and no recipe{did_you_mean(address, names)}; give a run folder, "
            "a weights file, a TOML file, or a name of `fewstep list recipes`"
        )
    recipe = read(address)
    if weights != "ema":
        raise InputError(f"{address} is a recipe, which has no weights: leave out --weights")
    if recipe.method_name == "autoencode":
        raise InputError(
            f"{address} trains an autoencoder, which adds no noise: name a recipe of a generator"
        )
    allow_code(recipe)
    generator = stand_in(recipe)
    if generator is None:
        raise InputError(
            f"{address} starts from a network that is missing: `fewstep train {address} --dry-run` "
            "says how to get it"
        )
    return Model(LoadedRun(address, address, generator, recipe, None), False, data)
