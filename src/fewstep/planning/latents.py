"""The latents that a recipe trains on, before its autoencoder may have been trained."""

from collections.abc import Sequence
from pathlib import Path

from fewstep.autoencoder_files import load_autoencoder
from fewstep.autoencoder_recipes import build_autoencode
from fewstep.autoencoders import Decoder
from fewstep.data import ImageSet
from fewstep.generator import Generator
from fewstep.latent_recipes import encode_command, is_missing, latent_space
from fewstep.planning.requirement import Requirement
from fewstep.recipe import Recipe, read
from fewstep.schema import preset_names


def find_latents(
    recipe: Recipe, images: ImageSet, networks: Sequence[Generator | None]
) -> tuple[list[Requirement], Decoder | None]:
    """The autoencoder and store of a recipe, and the decoder of its latents; None for pixels.

    A missing autoencoder that a preset trains has an untrained one in its place. `networks` are the
    teacher and that of `student.init`.

    Raises: InputError for latents that do not fit the recipe, and for a damaged autoencoder.
    """
    address, config = recipe.data.autoencoder, recipe.data
    requirements: list[Requirement] = []
    if config.latents:
        remedy = encode_command(config) if is_missing(config.latents) else ""
        requirements.append(Requirement("latents", config.latents, remedy))
    decoders = [network.decoder for network in networks if network and network.decoder]
    if address is None or ":" in address or Path(address).exists():
        if address:
            requirements.append(Requirement("autoencoder", address))
        if decoders and not decoders[0].autoencoder:  # that of a network that is missing
            own = address and load_autoencoder(address, shape=images.shape).decoder
            return requirements, own or decoders[0]
        space = latent_space(recipe, images, *networks)
        return requirements, space and space.decoder
    preset = Path(address).name
    if preset not in preset_names():
        missing = f"fewstep train cifar10-autoencoder --out {address}"
        requirements.append(Requirement("autoencoder", address, missing))
        return requirements, decoders[0] if decoders else None
    place = "" if address == f"runs/{preset}" else f" --out {address}"
    requirements.append(Requirement("autoencoder", address, f"fewstep train {preset}{place}"))
    trained_by = read(preset)
    return requirements, build_autoencode(
        trained_by, images.shape, trained_by.method
    ).student.decoder
