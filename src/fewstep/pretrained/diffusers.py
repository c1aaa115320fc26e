"""Unconditional DDPMs in the format of diffusers, in a folder or on the Hugging Face hub.

    FOLDER/config.json, diffusion_pytorch_model.safetensors or .bin     both may be in unet/
    FOLDER/scheduler_config.json                                        may be in scheduler/

Step i of a T-step table is t = i/(T − 1), and x_t = √abar_i·x0 + √(1 − abar_i)·eps.  Ho et al.
2020, arXiv:2006.11239. The package diffusers is not needed: our own U-Net loads the weights.
"""

import json
import math
import pickle
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field, PositiveInt, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.backbones import Backbone, UNetConfig
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, SampleSpec
from fewstep.parametrization import Clean, Eps, V
from fewstep.pretrained.hub import CONFIG, SCHEDULER, WEIGHTS, find_folder
from fewstep.process import LinearBetas, Process, Table
from fewstep.sampling import Transfer

SCHEDULERS = {
    "DDPMScheduler": True,
    "DDIMScheduler": True,
    "PNDMScheduler": False,
    "DPMSolverMultistepScheduler": False,
}
"""Supported schedulers, and whether each clips the predicted image by default."""
PREDICTIONS = {"epsilon": Eps, "v_prediction": V, "sample": Clean}
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention weights in old checkpoints, and their current names."""

_UNREADABLE = (
    OSError,
    SafetensorError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    AttributeError,  # the pickle holds something else than a dict
)

Settings = TypeVar("Settings")

Down = Literal["DownBlock2D", "AttnDownBlock2D", "UNetResDownBlock2D", "UNetResAttnDownBlock2D"]
Up = Literal["UpBlock2D", "AttnUpBlock2D", "UNetResUpBlock2D", "UNetResAttnUpBlock2D"]


@dataclass(frozen=True)
class Network:
    """Settings of a UNet2DModel, with diffusers' defaults.

    The types allow only values that our U-Net supports.
    """

    sample_size: PositiveInt | tuple[PositiveInt, PositiveInt]
    in_channels: PositiveInt = 3
    out_channels: PositiveInt = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[Down, ...] = (
        "DownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
        "AttnDownBlock2D",
    )
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[Up, ...] = (
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "AttnUpBlock2D",
        "UpBlock2D",
    )
    block_out_channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (
        224,
        448,
        672,
        896,
    )
    layers_per_block: PositiveInt = 2
    mid_block_scale_factor: Literal[1] = 1
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Literal["conv"] = "conv"
    upsample_type: Literal["conv"] = "conv"
    dropout: float = 0.0
    act_fn: Literal["silu", "swish"] = "silu"
    attention_head_dim: PositiveInt | None = 8
    norm_num_groups: PositiveInt = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: Literal["default"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images."""
        size = self.sample_size
        return (self.in_channels, *((size, size) if isinstance(size, int) else size))

    def find_conflict(self) -> tuple[str, str] | None:
        """The first setting that our U-Net cannot combine with the others, and its valid value."""
        widths, attends = self.block_out_channels, ["Attn" in b for b in self.down_block_types]
        mirrored = ["Attn" in block for block in reversed(self.up_block_types)]
        rules = {
            "out_channels": (self.out_channels == self.in_channels, "as many as in_channels"),
            "down_block_types": (len(attends) == len(widths), "as long as block_out_channels"),
            "up_block_types": (mirrored == attends, "the mirror image of down_block_types"),
            "time_embedding_dim": (
                self.time_embedding_dim in (None, 4 * widths[0]),
                "4 times the first of block_out_channels",
            ),
            "attn_norm_num_groups": (
                self.attn_norm_num_groups in (None, self.norm_num_groups),
                "as many as norm_num_groups",
            ),
        }
        return next(((key, rule) for key, (fits, rule) in rules.items() if not fits), None)

    def unet(self) -> UNetConfig:
        """The config of our U-Net that builds the same network."""
        height = self.shape[1]
        return UNetConfig(
            channels=self.block_out_channels,
            layers=self.layers_per_block,
            attention=tuple(
                height >> i for i, block in enumerate(self.down_block_types) if "Attn" in block
            ),
            middle_attention=self.add_attention,
            head_dim=self.attention_head_dim,
            groups=self.norm_num_groups,
            dropout=self.dropout,
            norm_eps=self.norm_eps,
            downsample_padding=self.downsample_padding,
            flip_sin_to_cos=self.flip_sin_to_cos,
            freq_shift=self.freq_shift,
        )


@dataclass(frozen=True)
class Schedule:
    """Settings of a scheduler, with diffusers' defaults.

    The types allow only values that we support.
    """

    num_train_timesteps: PositiveInt = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: Literal[False] = False
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    predict_epsilon: Literal[True] = True
    clip_sample: bool | None = None
    clip_sample_range: float = 1.0
    thresholding: bool = False

    def process(self) -> Process:
        """The noise schedule: `LinearBetas` if its betas are equally spaced, else a table."""
        betas = self._betas()
        steps, first, last = len(betas), float(betas[0]), float(betas[-1])
        if self.trained_betas is None and self.beta_schedule == "linear":
            return LinearBetas(steps, self.beta_start, self.beta_end)
        # up to rounding, which differs between projects
        if torch.allclose(betas, torch.linspace(first, last, steps), rtol=1e-6, atol=0.0):
            return LinearBetas(steps, first, last)
        return Table(tuple(torch.cumprod(1 - betas.double(), dim=0).tolist()))

    def _betas(self) -> Tensor:
        """Betas in float32, the dtype in which diffusers trains."""
        steps = self.num_train_timesteps
        if self.trained_betas is not None:
            return torch.tensor(self.trained_betas)
        if self.beta_schedule == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, 2102.09672
            angle = (torch.arange(steps + 1, dtype=torch.float64) / steps + 0.008) / 1.008
            abar = torch.cos(0.5 * math.pi * angle).square()
            return (1 - abar[1:] / abar[:-1]).clamp(max=0.999).float()
        power = 1 if self.beta_schedule == "linear" else 2
        first, last = self.beta_start ** (1 / power), self.beta_end ** (1 / power)
        return torch.linspace(first, last, steps) ** power

    @property
    def clip(self) -> float | None:
        """Bound to which the predicted image is clipped; None if it is not."""
        return self.clip_sample_range if self.clip_sample else None


def read_diffusers(name: str) -> Generator:
    """Load a generator, which samples by DDIM. `name` is a folder, or OWNER/NAME on the hub.

    Raises: InputError if files are missing or damaged, or our U-Net does not support the network.
    """
    config_path, weights, scheduler = _files(find_folder(name))
    network, schedule = _network(config_path), _schedule(scheduler, config_path)
    try:
        backbone = network.unet().build(shape=network.shape)
    except InputError as error:
        message = f"{config_path}: our U-Net does not support this network: {error}"
        raise InputError(message) from error
    _load_weights(backbone, weights)
    try:
        process = schedule.process()
    except ValueError as error:
        raise InputError(f"{scheduler}: its betas are not a noise schedule: {error}") from error
    denoiser = Denoiser(backbone, process, PREDICTIONS[schedule.prediction_type](process))
    step = Transfer(clip=schedule.clip)
    generator = Generator(denoiser, SampleSpec(network.shape), step=step)
    return generator.eval().requires_grad_(False)


def _network(config_path: Path) -> Network:
    network = _settings(Network, config_path, ("UNet2DModel",))
    conflict = network.find_conflict()
    if conflict:
        key, expected = conflict
        value = getattr(network, key)
        raise InputError(f"{config_path}: {key} is {value!r}, but must be {expected} here")
    return network


def _schedule(scheduler: Path | None, config_path: Path) -> Schedule:
    if scheduler is None:
        warnings.warn(
            f"there is no {SCHEDULER} with {config_path}: assuming DDPM's 1,000 linear betas from "
            "0.0001 to 0.02 and a network that predicts the noise",
            stacklevel=3,
        )
        return Schedule(clip_sample=True)
    schedule = _settings(Schedule, scheduler, tuple(SCHEDULERS))
    if schedule.thresholding:
        warnings.warn(
            f"{scheduler}: thresholding is on, but not supported: it is ignored", stacklevel=3
        )
    if schedule.clip_sample is None:
        name = _json(scheduler).get("_class_name", "DDPMScheduler")
        return replace(schedule, clip_sample=SCHEDULERS[name])
    return schedule


def _settings(kind: type[Settings], path: Path, names: tuple[str, ...]) -> Settings:
    name = _json(path).get("_class_name", names[0])
    if name not in names:
        raise InputError(f"{path}: _class_name is {name!r}, but must be {' or '.join(names)}")
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"][0]
        if first["type"] == "missing":
            raise InputError(f"{path} has no setting {key}: add it, as a number") from None
        value = first["input"]
        raise InputError(f"{path}: {key} = {value!r} is not supported: {first['msg']}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged or is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} is not a JSON object of settings")
    return settings


def _files(folder: Path) -> tuple[Path, Path, Path | None]:
    """Paths of the network's config, its weights, and the scheduler's config if present."""
    unet = folder / "unet" if (folder / "unet" / CONFIG).is_file() else folder
    if not (unet / CONFIG).is_file():
        raise InputError(f"{folder} is no diffusers checkpoint: it lacks {CONFIG}, also in unet/")
    weights = [unet / name for name in WEIGHTS if (unet / name).is_file()]
    if not weights:
        raise InputError(f"{unet} lacks {' or '.join(WEIGHTS)}")
    roots = [folder, folder.parent] if folder.name == "unet" else [folder]
    candidates = [root / inner / SCHEDULER for root in roots for inner in ("scheduler", "")]
    return unet / CONFIG, weights[0], next((path for path in candidates if path.is_file()), None)


def _load_weights(backbone: Backbone, path: Path) -> None:
    """Load weights. The file must have exactly the network's tensors."""
    state = {_current_name(name): value for name, value in _read(path).items()}
    expected = backbone.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        needed, actual = (_shape(tensors.get(name)) for tensors in (expected, state))
        if needed != actual:
            raise InputError(
                f"{path} does not fit its {CONFIG}: {name} is {actual} in the file, but {needed} "
                "in a network with these settings"
            )
    backbone.load_state_dict(state)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))


def _current_name(name: str) -> str:
    old = "|".join(ATTENTION)
    return re.sub(rf"(?<=\.)({old})(?=\.\w+$)", lambda match: ATTENTION[match[0]], name)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
        return {name: value for name, value in content.items() if isinstance(value, Tensor)}
    except _UNREADABLE as error:
        problem = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged or is not a weights file: {problem}") from error
