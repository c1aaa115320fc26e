"""Recipes that train an autoencoder: their checks, and the network that they describe."""

from typing import Any

import torch

from fewstep.autoencoders import Autoencoder
from fewstep.errors import InputError
from fewstep.methods.autoencode import Autoencode
from fewstep.recipe import Recipe, StudentConfig

UNUSED = ("autoencoder", "latents", "prompts")
"""Keys of [data] that are for generators alone."""


def check_autoencoder_recipe(recipe: Recipe) -> None:
    """Raise InputError for settings that have no effect on the training of an autoencoder."""
    problem = ""
    sections = {
        "teacher": recipe.teacher is not None,
        "pairs": recipe.pairs is not None,
        "text": recipe.text is not None,
        "student": recipe.student != StudentConfig(),
    }
    if any(sections.values()):
        section = next(name for name, present in sections.items() if present)
        problem = f"has a section [{section}]: remove it, method.network is the network to train"
    elif recipe.data.augment:
        problem = f"has data.augment={recipe.data.augment}: set it to 0, data.flip is possible"
    elif key := next((key for key in UNUSED if getattr(recipe.data, key)), None):
        value = getattr(recipe.data, key)
        problem = f"has data.{key}={value}, which has no effect: remove it"
    elif recipe.evaluate.every:
        problem = (
            f"has evaluate.every={recipe.evaluate.every}: set it to 0, and measure reconstructions "
            "with `fewstep encode DATA --autoencoder RUN --measure`"
        )
    elif recipe.fit.compile or recipe.fit.precision == "bf16":
        key = "fit.compile=true" if recipe.fit.compile else "fit.precision=bf16"
        problem = f'has {key}: remove it, fit.precision="tf32" is fast on GPUs'
    if problem:
        raise InputError(f"the method autoencode trains an autoencoder, and the recipe {problem}")


def build_autoencode(recipe: Recipe, shape: tuple[int, ...], config: Any) -> Autoencode:
    """The method of a recipe with a new network for images of `shape`.

    `config` are the method's settings, whose losses may be bound. Raises InputError for a network
    that does not fit the images, or that cannot be trained here.
    """
    if config.network.is_pinned:
        raise InputError(
            "method.network is of another project, which is not trained here: set it to "
            '"convolutional", or use it as it is in data.autoencoder'
        )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.fit.seed)
        autoencoder = Autoencoder(config.network, shape)
    return Autoencode(config, autoencoder)
