"""Checkpoints of lucidrains' denoising-diffusion-pytorch, 1.9 or newer.

    lucidrains:FILE.pt?image_size=32
        a file of its Trainer, or a state dict of its GaussianDiffusion
    lucidrains:FILE.pt?image_size=32&beta_schedule=cosine&objective=pred_noise
        a state dict of its Unet alone

The settings of the network follow from the shapes of its tensors, the schedule and the objective
from the buffers of the diffusion. The size of the images is in no file.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from fewstep.backbones.lucidrains_unet import LucidrainsUNetConfig
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.parametrization import Clean, Eps, V
from fewstep.paths import expand_home
from fewstep.pretrained.address import parse_options, split_options
from fewstep.pretrained.assembly import assemble, build_backbone
from fewstep.pretrained.files import read_weights, state_dict
from fewstep.pretrained.schedules import Schedule, named_schedule
from fewstep.process import Process, Table
from fewstep.sampling import Transfer

Objective = Literal["pred_noise", "pred_x0", "pred_v"]
OBJECTIVES = {"pred_noise": Eps, "pred_x0": Clean, "pred_v": V}
FIRST = "init_conv.weight"
"""A tensor that every such network has; the prefix of its name is that of all its tensors."""
STAGE = ("resnet1", "resnet2", "attention", "resample")
RENAMED = {
    r"time_mlp\.1\.": "time_embedding.linear_1.",
    r"time_mlp\.3\.": "time_embedding.linear_2.",
    r"\.mlp\.1\.": ".emb_proj.",
}


@dataclass(frozen=True)
class Options:
    """What is not in the file, by the names of the package's own arguments."""

    image_size: Annotated[tuple[PositiveInt, ...], Field(max_length=2)] = ()
    """Side of the images in pixels, or height and width."""
    weights: Literal["ema", "raw"] = "ema"
    """Averaged or raw weights, of a file that has both."""
    objective: Objective | None = None
    """What the network predicts; by default as the diffusion's buffers say."""
    beta_schedule: Schedule | None = None
    """Noise schedule with the package's own settings; by default that of the buffers."""
    timesteps: PositiveInt = 1000
    """Number of steps of `beta_schedule`."""
    resnet_block_groups: PositiveInt = 8
    """Groups of the normalisations, in versions before 2.0."""


def read_lucidrains(address: str) -> Generator:
    """Load a file of denoising-diffusion-pytorch, such as lucidrains:FILE.pt?image_size=32.

    A network with self-conditioning is evaluated without it, as at the first step of a sample.

    Raises: InputError for a file of another layout, or one whose settings need an option.
    """
    name, text = split_options(address)
    path, options = Path(expand_home(name)), parse_options(Options, text, address)
    state, diffusion = _tensors(path, options.weights)
    if not options.image_size:
        raise InputError(
            f"the image size is not in {path}: add it, as in lucidrains:{name}?image_size=32"
        )
    config, channels, state = _network(state, path, options.resnet_block_groups)
    shape = (channels, options.image_size[0], options.image_size[-1])
    backbone = build_backbone(config, state, path, shape=shape)
    process = _process(diffusion, options, path)
    objective = options.objective or _objective(diffusion, path)
    return assemble(backbone, process, OBJECTIVES[objective](process), step=Transfer(clip=1.0))


def _tensors(
    path: Path, weights: Literal["ema", "raw"]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's tensors and the diffusion's buffers."""
    content = read_weights(path)
    step = ""
    if isinstance(content, Mapping) and "model" in content:
        entries = cast(Mapping[str, Any], content)
        key = "ema" if weights == "ema" and entries.get("ema") else "model"
        content, step = entries[key], f" of step {entries.get('step')}"
        kind = "averaged (EMA)" if key == "ema" else "raw"
        print(f"fewstep: {path}: using the {kind} weights{step}", file=sys.stderr)
    state = state_dict(content)
    prefixes = [name.removesuffix(FIRST) for name in state if name.endswith(FIRST)]
    if not prefixes:
        raise InputError(
            f"{path} holds no network of lucidrains' denoising-diffusion-pytorch: no {FIRST}"
        )
    # the averager of a Trainer may hold the raw weights too
    prefix = min(prefixes, key=lambda prefix: "online_model." in prefix)
    outer = prefix.removesuffix("model.")
    network = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    buffers = {k.removeprefix(outer): v for k, v in state.items() if k.startswith(outer)}
    inner = {name for name in network if "." not in name}  # buffers beside a bare network
    return {k: v for k, v in network.items() if k not in inner}, buffers


def _network(
    state: Mapping[str, Tensor], path: Path, groups: int
) -> tuple[LucidrainsUNetConfig, int, dict[str, Tensor]]:
    """The network's settings, the number of image channels, and its tensors by our names."""
    problems = {
        "time_mlp.0.weights": "has learned or random frequencies in its embedding",
        "downs.0.2.fn.norm.g": "was written by a version before 1.9",
    }
    for name, problem in problems.items():
        if name in state:
            raise InputError(f"{path} {problem}, which fewstep does not support")
    try:
        sizes = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("downs."))
        sizes = min(sizes, len(state))  # a larger one lacks tensors
        channels, first = state["final_conv.weight"].shape[0], state[FIRST].shape[1]
        # a full attention's output is one layer, a linear one's is a layer and a normalisation
        full = tuple(f"downs.{i}.2.to_out.weight" in state for i in range(sizes))
        memory = [state[f"downs.{i}.2.mem_kv"].shape for i in range(sizes)]
        config = LucidrainsUNetConfig(
            channels=(
                *(state[f"downs.{i}.0.block1.proj.weight"].shape[0] for i in range(sizes)),
                state["mid_block1.block1.proj.weight"].shape[0],
            ),
            width=state["time_mlp.1.weight"].shape[1],
            full_attention=full,
            heads=tuple(shape[1] for shape in memory),
            head_dim=tuple(
                shape[3 if is_full else 2] for shape, is_full in zip(memory, full, strict=True)
            ),
            memory=memory[0][2 if full[0] else 3],
            groups=groups if "mid_block1.block1.norm.weight" in state else None,
        )
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{path} holds no whole network of lucidrains' denoising-diffusion-pytorch: it lacks "
            f"{error}"
        ) from None
    if first not in (channels, 2 * channels):
        raise InputError(
            f"{path}: the network has {first} input and {channels} output channels: a network that "
            "predicts its variance too is not supported"
        )
    renamed = {_our_name(name): value for name, value in state.items()}
    # self-conditioning: the first half of the input is the last predicted image, here always zero
    renamed[FIRST] = renamed[FIRST][:, -channels:]
    return config, channels, renamed


def _our_name(name: str) -> str:
    for theirs, ours in RENAMED.items():
        name = re.sub(theirs, ours, name)
    stage = re.fullmatch(r"(downs|ups)\.(\d+)\.([0-3])\.(.+)", name)
    if stage is None:
        return name
    side, index, layer, rest = stage.groups()
    if side == "ups" and layer == "3":
        rest = re.sub(r"^1\.", "conv.", rest)
    return f"{side}.{index}.{STAGE[int(layer)]}.{rest}"


def _process(diffusion: Mapping[str, Tensor], options: Options, path: Path) -> Process:
    if options.beta_schedule:
        return named_schedule(options.beta_schedule, options.timesteps)
    try:
        signal, noise = (
            diffusion[name].double().square()
            for name in ("sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
        )
        # both are rounded to float32: take the smaller one, whose relative error is small in both
        return Table(tuple(torch.where(signal < noise, signal, 1 - noise).tolist()))
    except KeyError:
        raise InputError(
            f"{path} holds a network without its noise schedule: add it, as in "
            f"beta_schedule=cosine&timesteps=1000&objective=pred_noise"
        ) from None
    except (ValueError, RuntimeError) as error:  # of values, and of sizes that differ
        raise InputError(f"{path}: its alphas_cumprod are no noise schedule: {error}") from error


def _objective(diffusion: Mapping[str, Tensor], path: Path) -> Objective:
    """What the network predicts, from the weights of its loss.

    These are 1, snr and snr/(snr + 1); clipping of the snr leaves those of noisy times unchanged.
    """
    signal, weight = diffusion.get("alphas_cumprod"), diffusion.get("loss_weight")
    if signal is not None and weight is not None and signal.shape == weight.shape:
        signal, weight = signal.double(), weight.double()
        noisy = (signal > 0.05) & (signal < 0.3)
        signal, weight = signal[noisy], weight[noisy]
        snr = signal / (1 - signal)
        expected = {"pred_noise": torch.ones_like(snr), "pred_x0": snr, "pred_v": signal}
        for objective, values in expected.items():
            if len(weight) and torch.allclose(weight, values, rtol=1e-3):
                return cast(Objective, objective)
    raise InputError(
        f"{path} does not say what its network predicts: add objective=pred_noise, "
        "objective=pred_x0 or objective=pred_v"
    )
