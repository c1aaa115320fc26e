"""Recipes that train on latents: their autoencoder, and what it changes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewstep.autoencoder_files import load_autoencoder
from fewstep.autoencoders import Autoencoder, Decoder
from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.latents import Latents, encode_set, read_latents
from fewstep.paths import expand_home
from fewstep.recipe import DataConfig, Recipe
from fewstep.sample_spec import SampleSpec


@dataclass(frozen=True)
class LatentSpace:
    """The latents that a recipe trains on."""

    decoder: Decoder
    autoencoder: Autoencoder | None
    """None if only the decoder of a teacher is at hand."""

    def spec(self, spec: SampleSpec) -> SampleSpec:
        """The description of the latents of images that `spec` describes."""
        return replace(spec, shape=self.decoder.latent_shape)

    def latents(self, recipe: Recipe, images: ImageSet, device: torch.device) -> Latents:
        """The latents of the images, read or encoded.

        Raises: InputError without an autoencoder, or as `encode_set` and `read_latents`.
        """
        config = recipe.data
        if config.latents:
            if is_missing(config.latents):
                raise InputError(
                    f"there are no latents in {config.latents}: write them by `"
                    f"{encode_command(config)}`, or leave out data.latents to encode in memory"
                )
            digest = self.decoder.autoencoder
            return read_latents(config.latents, digest, images, flip=config.flip)
        if self.autoencoder is None:
            raise InputError(
                f"the method {recipe.method_name} trains on latents of images: set "
                "data.autoencoder to the autoencoder of the teacher"
            )
        return encode_set(self.autoencoder.to(device), images, flip=config.flip)


def is_missing(store: str) -> bool:
    """Whether there is nothing at the address of a store on this machine."""
    return "://" not in store and not Path(expand_home(store)).exists()


def encode_command(config: DataConfig) -> str:
    """The command that writes `data.latents`."""
    data = config.name if config.path is None else f"{config.name}:{config.path}"
    words = ["fewstep encode", data, f"--autoencoder {config.autoencoder or 'RUN'}"]
    words += [f"--split {config.split}"] * (config.split != "train")
    words += [f"--size {config.size}"] * (config.size is not None)
    words += ["--flip"] * config.flip
    return " ".join([*words, f"--out {config.latents}"])


def check_pairs(recipe: Recipe, streams: Mapping[str, Any], space: LatentSpace | None) -> None:
    """Raise InputError for recorded pairs of other latents than those of the recipe."""
    expected = space and space.decoder.autoencoder
    for name in streams.keys() & {"pairs", "rings"}:
        recorded = streams[name].reader.provenance.get("autoencoder")
        if recorded != expected and recipe.pairs:
            texts = [
                "pixels" if h is None else f"latents of {h[:12]}" for h in (recorded, expected)
            ]
            raise InputError(
                f"the pairs in {recipe.pairs.load} are of {texts[0]}, and the recipe trains on "
                f"{texts[1]}: record pairs of its teacher, or set data.autoencoder to theirs"
            )


def check_latents(recipe: Recipe, *, reads_images: bool) -> None:
    """Raise InputError for a store of latents that would have no effect."""
    if recipe.data.latents and not reads_images:
        raise InputError(
            f"data.latents is {recipe.data.latents}, but the method {recipe.method_name} trains on "
            "no images of the data: remove data.latents"
        )


def latent_space(
    recipe: Recipe, images: ImageSet, *sources: Generator | None
) -> LatentSpace | None:
    """The latents that a recipe trains on; None for pixels.

    `sources` are the teacher and the network of `student.init`; a student generates the same
    latents as they do, so that a recipe need not name their autoencoder again.

    Raises: InputError for an autoencoder that differs from theirs or does not fit the images, and
    for settings that latents do not have.
    """
    config, space = recipe.data, None
    if config.autoencoder:
        autoencoder = load_autoencoder(config.autoencoder, shape=images.shape)
        space = LatentSpace(autoencoder.frozen_decoder(), autoencoder)
    for source in filter(None, sources):
        decoder = source.decoder
        if space is None and decoder is not None:
            space = LatentSpace(decoder, None)
        if space is not None and (
            decoder is None or decoder.autoencoder != space.decoder.autoencoder
        ):
            theirs = "pixels" if decoder is None else f"latents of {decoder.autoencoder[:12]}"
            raise InputError(
                f"the recipe trains on latents of the autoencoder {space.decoder.autoencoder[:12]}"
                f", but its teacher, or the network of student.init, generates {theirs}: set "
                "data.autoencoder to theirs, or train another teacher"
            )
    if space is None:
        if config.latents:
            raise InputError("data.latents needs data.autoencoder, which encoded them: set it too")
        return None
    if space.decoder.shape != images.shape:
        raise InputError(
            f"the autoencoder decodes images of shape {space.decoder.shape}, but those of "
            f"data.name={config.name} have {images.shape}: set data.size, or use another"
        )
    if config.augment:
        raise InputError(
            f"data.augment is {config.augment}, but latents cannot be augmented: set it to 0; "
            "data.flip is possible"
        )
    return space
