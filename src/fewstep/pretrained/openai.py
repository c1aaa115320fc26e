"""State dicts of OpenAI's improved-diffusion, guided-diffusion and consistency_models.

    openai:FILE.pt?image_size=64&noise_schedule=cosine&num_head_channels=64

The widths, attention and kind of layers follow from the tensors. What does not is an option of the
address, or a key of the JSON object FILE.json beside the file; options of the address come first.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from fewstep.backbones.edm_unet import EDMUNetConfig
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.parametrization import EDM, Clean, Eps
from fewstep.paths import expand_home, read_regular
from fewstep.pretrained.address import parse_options, split_options
from fewstep.pretrained.assembly import assemble, build_backbone
from fewstep.pretrained.attention import split_joint
from fewstep.pretrained.files import read_weights, state_dict
from fewstep.pretrained.parametrizations import EDMBoundary
from fewstep.pretrained.schedules import named_schedule
from fewstep.process import VE
from fewstep.sampling import Heun, Renoise, Transfer
from fewstep.times import KarrasGrid

LAYER = {
    r"\.in_layers\.0\.": ".norm1.",
    r"\.in_layers\.2\.": ".conv1.",
    r"\.emb_layers\.1\.": ".emb_proj.",
    r"\.out_layers\.0\.": ".norm2.",
    r"\.out_layers\.3\.": ".conv2.",
    r"\.skip_connection\.": ".shortcut.",
    r"\.op\.": ".conv.",
    r"\.norm\.": ".group_norm.",
    r"\.proj_out\.": ".to_out.0.",
}
NETWORK = {
    r"time_embed\.0\.": "time_embedding.linear_1.",
    r"time_embed\.2\.": "time_embedding.linear_2.",
    r"input_blocks\.0\.0\.": "conv_in.",
    r"out\.0\.": "norm_out.",
    r"out\.2\.": "conv_out.",
}


@dataclass(frozen=True)
class Options:
    """What is not in the file, by the names of OpenAI's own arguments."""

    image_size: Annotated[tuple[PositiveInt, ...], Field(max_length=2)] = ()
    """Side of the images in pixels, or height and width."""
    noise_schedule: Literal["linear", "cosine", "edm", "consistency"] | None = None
    """Linear or cosine betas, EDM's levels, or these with the boundary of consistency models."""
    diffusion_steps: PositiveInt = 1000
    """Number of steps of linear or cosine betas."""
    predict_xstart: bool = False
    """Whether a network with betas predicts the image; otherwise it predicts the noise."""
    num_heads: PositiveInt | None = None
    """Attention heads in every layer."""
    num_head_channels: int | None = None
    """Channels per attention head; -1 leaves it to `num_heads`."""
    use_new_attention_order: bool | None = None
    """Order of queries, keys and values; by default new in consistency_models alone."""
    sigma_data: PositiveFloat = 0.5
    """EDM's standard deviation of the data."""
    sigma_min: PositiveFloat = 0.002
    """EDM's least noise level."""
    sigma_max: PositiveFloat = 80.0
    """EDM's largest noise level."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout probability during training."""
    # what follows from the tensors is compared with them
    num_channels: int | None = None
    num_res_blocks: int | None = None
    attention_resolutions: tuple[int, ...] | None = None
    class_cond: bool | None = None
    learn_sigma: bool | None = None
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None


def read_openai(address: str) -> Generator:
    """Load a U-Net of OpenAI, such as openai:FILE.pt?image_size=64&noise_schedule=cosine.

    It samples by DDIM with betas, by Heun's method with EDM's levels, and as a consistency model if
    it is one. Of a network that predicts its variance, only the mean is used.

    Raises: InputError for a file of another layout, or one whose settings need an option.
    """
    name, text = split_options(address)
    path = Path(expand_home(name))
    options = _options(path, text, address)
    layout = _Layout(_tensors(path), path)
    schedule, size = options.noise_schedule, options.image_size
    if not size:
        raise InputError(
            f"the image size is not in {path}: add it, as in openai:{name}?image_size=64"
        )
    if schedule is None:
        raise InputError(
            f"the noise schedule is not in {path}: add noise_schedule=linear, cosine, edm or "
            "consistency"
        )
    new_order = options.use_new_attention_order
    if new_order is None:
        new_order = schedule in ("edm", "consistency")
    try:
        config = layout.config(options)
        layout.compare(config, options)
        weights = layout.weights(config, 0 if new_order else 1)
    except (KeyError, IndexError) as error:
        raise _incomplete(path, error) from error
    shape = (layout.channels, size[0], size[-1])
    backbone = build_backbone(config, weights, path, shape=shape, classes=layout.classes)
    if schedule == "linear" or schedule == "cosine":
        process = named_schedule(schedule, options.diffusion_steps)
        kind = Clean if options.predict_xstart else Eps
        return assemble(backbone, process, kind(process), step=Transfer(clip=1.0))
    limits = options.sigma_data, options.sigma_min, options.sigma_max
    process, grid = VE(options.sigma_max), KarrasGrid()
    if schedule == "edm":
        return assemble(backbone, process, EDM(*limits), step=Heun(), grid=grid)
    return assemble(backbone, process, EDMBoundary(*limits), step=Renoise(clip=1.0), grid=grid)


def _options(path: Path, text: dict[str, str], address: str) -> Options:
    """The options of an address, and those in the JSON file beside."""
    beside = path.with_suffix(".json")
    settings: dict[str, str] = {}
    if beside.is_file():
        raw = read_regular(beside)
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{beside} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{beside} is not a JSON object of options")
        for key, value in cast(dict[str, Any], content).items():
            if value is None:
                continue
            items = cast(list[Any], value) if isinstance(value, list) else [value]
            settings[key] = ",".join(map(str, items))
        parse_options(Options, settings, str(beside))  # so that a message names the file
    return parse_options(Options, {**settings, **text}, address)


def _tensors(path: Path) -> dict[str, Tensor]:
    state = state_dict(read_weights(path))
    name = next((name for name in state if name.endswith("input_blocks.0.0.weight")), None)
    if name is None:
        raise InputError(f"{path} holds no U-Net of OpenAI's layout: no input_blocks.0.0.weight")
    prefix = name.removesuffix("input_blocks.0.0.weight")
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _incomplete(path: Path, error: Exception) -> InputError:
    problem = f"no {error}" if isinstance(error, KeyError) else "a layer or shape does not belong"
    return InputError(f"{path} holds no whole U-Net of OpenAI's layout: {problem}")


class _Layout:
    """The settings of the network that follow from its tensors."""

    def __init__(self, state: Mapping[str, Tensor], path: Path) -> None:
        self.state, self.path = state, path
        try:
            self.channels, out = state["input_blocks.0.0.weight"].shape[1], state["out.2.weight"]
            self.classes = len(state["label_emb.weight"]) if "label_emb.weight" in state else 0
            outputs = self._count("output_blocks")
            inputs = self._count("input_blocks")
            last = f"output_blocks.{outputs - 1}.0.in_layers.2.weight"
            if last not in state:
                raise KeyError(last)
        except (KeyError, IndexError) as error:
            raise _incomplete(path, error) from error
        if self.channels == 6:
            raise InputError(
                f"{path} is a super-resolution network, which takes a small image too: that is not "
                "supported"
            )
        # the last of the decoder's layers of a size is followed by an enlargement
        self.enlarged = [
            i for i in range(outputs) if any(name in state for name in self._enlargements(i))
        ]
        self.sizes = len(self.enlarged) + 1
        self.layers = outputs // self.sizes - 1
        if (
            inputs != outputs
            or outputs % self.sizes
            or len(out) not in (self.channels, 2 * self.channels)
        ):
            raise InputError(
                f"{path} is no plain U-Net of OpenAI's layout: it has {inputs} input and {outputs} "
                f"output blocks, {self.channels} input and {len(out)} output channels"
            )

    def _count(self, side: str) -> int:
        pattern = re.compile(rf"{side}\.(\d{{1,6}})\.")
        matches = (pattern.match(name) for name in self.state)
        count = 1 + max((int(match[1]) for match in matches if match), default=-1)
        if count > len(self.state):
            raise KeyError(f"{side}.{count - 2}")
        return count

    def _enlargements(self, index: int) -> list[str]:
        kinds = ("conv.weight", "in_layers.0.weight")
        return [f"output_blocks.{index}.{j}.{kind}" for j in (1, 2) for kind in kinds]

    def config(self, options: Options) -> EDMUNetConfig:
        """The config of our network."""
        first = [1 + size * (self.layers + 1) for size in range(self.sizes)]
        attends = [f"input_blocks.{i}.1.qkv.weight" in self.state for i in first]
        convolves = any(name.endswith(".op.weight") for name in self.state)
        head_channels = options.num_head_channels or -1
        if options.num_heads is None and head_channels < 1:
            raise InputError(
                f"the number of attention heads is not in {self.path}: add num_head_channels=64 "
                "(as in most of OpenAI's files) or num_heads=4"
            )
        level = self.state["time_embed.0.weight"]
        widths = [self.state[f"input_blocks.{i}.0.out_layers.3.weight"] for i in first]
        projection = self.state["input_blocks.1.0.emb_layers.1.weight"]
        return EDMUNetConfig(
            width=len(self.state["input_blocks.0.0.weight"]),
            channels=tuple(len(weight) for weight in widths),
            layers=self.layers,
            attention=tuple(
                options.image_size[0] >> i for i, attend in enumerate(attends) if attend
            ),
            decoder_attention="all",
            heads=None if head_channels > 0 else options.num_heads,
            head_dim=head_channels if head_channels > 0 else None,
            level_width=level.shape[1],
            embedding=level.shape[0],
            cosine_first=True,
            freq_shift=0.0,
            class_first=False,
            adaptive=len(projection) == 2 * len(widths[0]),
            residual_scale=1.0,
            resampling="convolution" if convolves else "layer",
            shortcut=False,
            min_group=1,
            norm_eps=1e-5,
            dropout=options.dropout,
            level_scale=1000.0,
            pace=1.0,
        )

    def compare(self, config: EDMUNetConfig, options: Options) -> None:
        """Raise InputError for an option that contradicts the tensors."""
        facts = {
            "num_channels": config.level_width,
            "num_res_blocks": config.layers,
            "attention_resolutions": config.attention,
            "class_cond": self.classes > 0,
            "learn_sigma": len(self.state["out.2.weight"]) == 2 * self.channels,
            "use_scale_shift_norm": config.adaptive,
            "resblock_updown": config.resampling == "layer",
        }
        for key, fact in facts.items():
            option = getattr(options, key)
            if isinstance(option, tuple):
                option = tuple(sorted(cast(tuple[int, ...], option), reverse=True))
            if option is not None and option != fact:
                raise InputError(
                    f"{self.path}: {key} is {option}, but in the weights it is {fact}: leave it out"
                )

    def weights(self, config: EDMUNetConfig, part_axis: Literal[0, 1]) -> dict[str, Tensor]:
        """The tensors by our names."""
        state: dict[str, Tensor] = {}
        for name, value in self.state.items():
            ours = self._our_name(name)
            if name == "label_emb.weight":
                # a network that was never without a class: its embedding adds nothing
                state["class_embedding.weight"] = torch.cat(
                    [value, value.new_zeros(1, value.shape[1])]
                )
            elif ".qkv." in ours:
                place, _, kind = ours.partition(".qkv.")
                width = len(value) // 3
                heads = config.heads or width // (config.head_dim or width)
                if heads == 0 or width % heads:
                    raise InputError(
                        f"{self.path}: {width} channels have no {heads} attention heads"
                    )
                parts = split_joint(value, heads, part_axis=part_axis)
                for letter, part in zip("qkv", parts, strict=True):
                    state[f"{place}.to_{letter}.{kind}"] = part
            elif ".to_out." in ours and value.ndim > 1:
                state[ours] = value.flatten(1)
            else:
                # a second half of the output is the variance
                state[ours] = value[: self.channels] if ours.startswith("conv_out") else value
        return state

    def _our_name(self, name: str) -> str:
        for theirs, ours in NETWORK.items():
            if re.match(theirs, name):
                return re.sub(f"^{theirs}", ours, name)
        match = re.match(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(\d+)\.)?", name)
        if match is None:
            return name
        rest = "." + name[match.end() :]
        if match[1] == "middle_block":  # a layer, attention, and a layer
            rest = "." + name.partition(f"middle_block.{match[2]}.")[2]
            place = ("middle.0", "middle.0.attention", "middle.1")[int(match[2])]
        else:
            place = self._place(match[1], int(match[2]), int(match[3]), rest)
        for theirs, ours in LAYER.items():
            rest = re.sub(theirs, ours, rest)
        return place + rest

    def _place(self, side: str, index: int, part: int, rest: str) -> str:
        """The name of our module for a part of a block of the encoder or decoder."""
        size, layer = divmod(index - 1 if side == "input_blocks" else index, self.layers + 1)
        if side == "input_blocks":
            if layer == self.layers:  # a reduction, which we count to the next size
                return f"downs.{size + 1}.resample"
            return f"downs.{size}.blocks.{layer}" + (".attention" if part else "")
        if part and index in self.enlarged and not re.match(r"\.(norm|qkv|proj_out)\.", rest):
            return f"ups.{size}.resample"
        return f"ups.{size}.blocks.{layer}" + (".attention" if part else "")
