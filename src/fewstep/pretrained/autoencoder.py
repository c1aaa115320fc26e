"""Autoencoders in the format of diffusers, by the classes of diffusers themselves.

    diffusers:FOLDER

FOLDER has the files of an `AutoencoderKL` (Rombach et al. 2022, arXiv:2112.10752) or an
`AutoencoderTiny`, itself or in vae/. Latents are the mode of the encoder's distribution, normalised
by the settings `shift_factor` and `scaling_factor`, or `latents_mean` and `latents_std`.
"""

import json
import logging
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.autoencoders.base import AutoencoderConfig, Shape
from fewstep.errors import InputError
from fewstep.files import tensor_digest
from fewstep.pretrained.folder import CONFIG, read_json
from fewstep.pretrained.hub import find_local
from fewstep.ranges import Address

CLASSES = ("AutoencoderKL", "AutoencoderTiny")
FOLDERS = ("", "vae")
OPTIONS = {"local_files_only": True, "use_safetensors": True, "low_cpu_mem_usage": False}
"""Options of `from_pretrained`: no downloads and no pickles, and no need of accelerate."""


@dataclass(frozen=True)
class DiffusersAutoencoder(AutoencoderConfig):
    """An AutoencoderKL or AutoencoderTiny of diffusers, as it was published."""

    is_pinned: ClassVar[bool] = True

    folder: Address
    """Folder of the autoencoder, or of a pipeline that contains it in vae/."""

    def __str__(self) -> str:
        return f"diffusers:{self.folder}"

    def latent_shape(self, shape: Shape) -> tuple[int, int, int]:
        config = self._model().config
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        factor, channels = 2 ** (len(blocks) - 1), config.in_channels
        if len(shape) != 3 or shape[0] != channels or any(side % factor for side in shape[1:]):
            raise InputError(
                f"{self} takes images of {channels} channels whose sides are multiples of {factor},"
                f" not shape {tuple(shape)}"
            )
        return config.latent_channels, shape[1] // factor, shape[2] // factor

    def build_encoder(self, shape: Shape) -> nn.Module:
        self.latent_shape(shape)
        return Elsewhere(self._model(), _encode)

    def build_decoder(self, shape: Shape) -> nn.Module:
        self.latent_shape(shape)
        return Elsewhere(self._model(), _decode)

    def pinned_hash(self) -> str:
        settings = {k: v for k, v in self._settings().items() if not k.startswith("_name_or")}
        header = json.dumps(settings, sort_keys=True, default=str)
        return tensor_digest(self._model().state_dict(), header=header)

    def _settings(self) -> dict[str, Any]:
        settings = read_json(self._place() / CONFIG)
        kind = settings.get("_class_name")
        if kind not in CLASSES:
            raise InputError(f"{self} is a {kind}, and fewstep reads {' and '.join(CLASSES)}")
        return settings

    def _place(self) -> Path:
        """The autoencoder's own folder."""
        root = find_local(self.folder)
        places = [root / name for name in FOLDERS] if root else []
        place = next((place for place in places if (place / CONFIG).is_file()), None)
        if place is None:
            raise InputError(
                f"{self} has no {CONFIG} of an autoencoder, also in vae/: put its files there, such"
                " as by `hf download OWNER/NAME --local-dir FOLDER`"
            )
        return place

    def _model(self) -> Any:
        place = self._place()
        self._settings()  # or raises its error
        stamps = [path.stat().st_mtime_ns for path in sorted(place.iterdir())]
        return _load(place, tuple(stamps))


class Elsewhere(nn.Module):
    """A function of a network whose weights are not part of this module's state."""

    def __init__(self, model: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = (model,)  # in a tuple, so that its weights are not saved
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.model[0], x)

    def _apply(self, fn: Any, recurse: bool = True) -> "Elsewhere":
        self.model[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)


@lru_cache(maxsize=2)
def _load(place: Path, stamps: tuple[int, ...]) -> Any:
    """The network in a folder; `stamps` are the times at which its files were changed."""
    with _without_log():
        try:
            import diffusers
        except ModuleNotFoundError:
            raise InputError(
                f"diffusers:{place} needs diffusers: pip install 'fewstep[export]'"
            ) from None
        kind = getattr(diffusers, read_json(place / CONFIG)["_class_name"])
        try:
            model = kind.from_pretrained(place, **OPTIONS)
        # damaged or missing files raise errors of many types
        except Exception as error:
            problem = " ".join(str(error).split())[:200]
            raise InputError(f"diffusers cannot load {place}: {problem}") from error
    _check_normalisation(model.config, place)
    return model.float().eval().requires_grad_(False)


@contextmanager
def _without_log() -> Generator[None]:
    """A context in which packages log nothing: what is wrong is said by the error."""
    earlier = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(earlier)


def _check_normalisation(config: Any, place: Path) -> None:
    """Raise InputError for settings by which latents cannot be normalised."""
    names = ("latents_mean", "latents_std")
    if all(getattr(config, name, None) for name in names):
        expected = f"{config.latent_channels} finite numbers, and no standard deviation 0"
        fits = all(len(getattr(config, name)) == config.latent_channels for name in names)
        values = [*config.latents_mean, *config.latents_std]
        divisors = config.latents_std
    else:
        names = ("shift_factor", "scaling_factor")
        expected = "a finite number, and no scaling_factor 0"
        values = [getattr(config, names[0], None) or 0.0, config.scaling_factor]
        fits, divisors = True, [config.scaling_factor]
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    if not (fits and numbers and all(divisors)):
        settings = " and ".join(f"{name} = {getattr(config, name, None)}" for name in names)
        raise InputError(f"{place / CONFIG} has {settings}; each must be {expected}")


def _encode(model: Any, images: Tensor) -> Tensor:
    output = model.encode(images)
    latents = output.latents if hasattr(output, "latents") else output.latent_dist.mode()
    shift, scale = _normalisation(model, latents)
    return (latents - shift) * scale


def _decode(model: Any, latents: Tensor) -> Tensor:
    shift, scale = _normalisation(model, latents)
    return model.decode(latents / scale + shift).sample


def _normalisation(model: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """What is subtracted from latents, and the factor of the difference."""
    config = model.config
    if getattr(config, "latents_mean", None) and getattr(config, "latents_std", None):
        mean, std = (
            torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return mean, 1 / std
    shift = getattr(config, "shift_factor", None) or 0.0
    return like.new_tensor(shift), like.new_tensor(config.scaling_factor)
