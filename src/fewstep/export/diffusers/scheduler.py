"""Schedulers of diffusers that say what a network was trained for, and how it is sampled."""

from collections.abc import Sequence
from typing import Any, get_args

import torch

from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.guidance import unguided
from fewstep.parametrization import Clean, Eps, V, Velocity
from fewstep.pretrained.betas import Betas, Schedule
from fewstep.process import VP, Cosine, Flow, LinearBetas, Process, Table
from fewstep.sampling import Ancestral, Transfer

Settings = dict[str, Any]
PREDICTIONS: dict[type, str] = {Eps: "epsilon", Clean: "sample", V: "v_prediction"}
FIRST_BETA = 1e-10
"""Noise variance of a table's step at t = 0, which must not be 0 and is 0 in float32."""


def describe_training(denoiser: Denoiser) -> tuple[str, Settings] | None:
    """The class and settings of a scheduler for what the network was trained for.

    None if diffusers has none: for other processes, or times in other units.
    """
    parametrization, process = denoiser.parametrization, denoiser.process
    pace = getattr(unguided(denoiser.backbone).config, "pace", 1.0)
    if getattr(parametrization, "native", None) != process or denoiser.is_flow_map:
        return None
    if type(parametrization) is Velocity and process == Flow():
        steps = 1000 * pace
        is_integer = steps == round(steps) and steps >= 1
        settings = {"num_train_timesteps": round(steps)}
        return ("FlowMatchEulerDiscreteScheduler", settings) if is_integer else None
    betas = _betas(process)
    if type(parametrization) not in PREDICTIONS or pace != 1 or betas is None:
        return None
    return "DDIMScheduler", {**betas, "prediction_type": PREDICTIONS[type(parametrization)]}


def _betas(process: Process) -> Settings | None:
    """The noise schedule of a process."""
    if isinstance(process, LinearBetas):
        ends = {"beta_start": process.beta_0, "beta_end": process.beta_1}
        return {"num_train_timesteps": process.steps, "beta_schedule": "linear", **ends}
    if isinstance(process, Table):
        for name in get_args(Schedule):
            if Betas(process.steps, beta_schedule=name).process() == process:
                return {"num_train_timesteps": process.steps, "beta_schedule": name}
        return _beta_list(torch.tensor(process.alphas_cumprod, dtype=torch.float64))
    if isinstance(process, VP) or process == Cosine():
        # levels are 1000·t, and step i of the table has the level i
        t = torch.arange(int(process.levels) + 1, dtype=torch.float64) / process.levels
        products = process.alpha(t).square()
        products[0] = 1 - FIRST_BETA
        return _beta_list(products)
    return None


def _beta_list(products: torch.Tensor) -> Settings:
    """Betas as a list, from their cumulative products."""
    before = torch.cat([products.new_ones(1), products[:-1]])
    return {
        "num_train_timesteps": len(products),
        "trained_betas": (1 - products / before).tolist(),
    }


def stock_schedulers(generator: Generator, steps: Sequence[int]) -> list[tuple[str, Any]]:
    """The names of stock pipelines, each with the scheduler by which it takes our steps.

    Their timesteps are the levels of our steps; whether their images are ours is to be measured.
    """
    training = describe_training(generator.denoiser)
    if training is None or training[0] != "DDIMScheduler":
        return []
    match generator.step:
        case Transfer(clip):
            pipeline, options = "DDIM", {"set_alpha_to_one": True}
        case Ancestral(variance, eta, clip) if eta == 1:
            size = "fixed_small" if variance == "posterior" else "fixed_large"
            pipeline, options = "DDPM", {"variance_type": size}
        case _:
            return []
    options |= {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    levels = {count: _levels(generator, count) for count in steps}
    candidates: list[tuple[str, Any]] = []
    for spacing in ("leading", "trailing", "linspace"):
        offset = round(levels[steps[0]][-1]) if spacing == "leading" else 0
        settings = {**training[1], **options, "timestep_spacing": spacing, "steps_offset": offset}
        scheduler = _make(f"{pipeline}Scheduler", settings)
        if all(_timesteps(scheduler, count) == levels[count] for count in steps):
            candidates.append((f"{pipeline}Pipeline", scheduler))
    return candidates


def save_training(training: tuple[str, Settings], folder: Any) -> None:
    """Write the scheduler of `describe_training` into a folder."""
    _make(*training).save_pretrained(folder)


def _make(name: str, settings: Settings) -> Any:
    import diffusers

    return getattr(diffusers, name)(**settings)


def _levels(generator: Generator, steps: int) -> list[float]:
    """The network's levels at the times of a sample; whole numbers are exact."""
    times = generator.grid(steps, generator.denoiser)
    levels = times * generator.denoiser.process.levels
    rounded = levels.round()
    return torch.where((levels - rounded).abs() < 1e-6, rounded, levels).tolist()


def _timesteps(scheduler: Any, steps: int) -> list[float]:
    """The timesteps of a scheduler; empty if it has none for this number of steps."""
    try:
        scheduler.set_timesteps(steps)
    except ValueError:
        return []
    return [float(t) for t in scheduler.timesteps]
