"""The scheduler classes of diffusers: what each is read as, or why it is not supported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.sampling import Ancestral, Heun, Multistep, Renoise, Step, Transfer


@dataclass(frozen=True)
class Kind:
    """A class of schedulers: its family, our sampler, and the defaults that are its own."""

    family: Literal["ddpm", "euler", "solver", "lcm", "edm", "consistency", "flow"]
    step: type[Step]
    defaults: Mapping[str, Any]
    equal: bool = True
    """Whether our sampler computes what diffusers' computes."""
    clips: bool = False
    """Whether the class reads `clip_sample`."""


_LINEAR = {"timestep_spacing": "linspace"}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
_DISTILLED = {**_LATENT, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
_LEADING = {"timestep_spacing": "leading"}
_CLIPPED = {**_LEADING, "clip_sample": True}
_COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}

KINDS = {
    "DDPMScheduler": Kind("ddpm", Transfer, _CLIPPED, clips=True),
    "DDPMParallelScheduler": Kind("ddpm", Transfer, _CLIPPED, clips=True),
    "DDIMScheduler": Kind("ddpm", Transfer, _CLIPPED, clips=True),
    "DDIMParallelScheduler": Kind("ddpm", Transfer, _CLIPPED, clips=True),
    "DDIMInverseScheduler": Kind("ddpm", Transfer, _CLIPPED, clips=True),
    "RePaintScheduler": Kind("ddpm", Transfer, _CLIPPED, clips=True),
    "UnCLIPScheduler": Kind("ddpm", Transfer, {**_COSINE, "clip_sample": True}, clips=True),
    "PNDMScheduler": Kind("ddpm", Multistep, _LEADING, equal=False),
    "EulerDiscreteScheduler": Kind("euler", Transfer, _LINEAR),
    "EulerAncestralDiscreteScheduler": Kind("euler", Ancestral, _LINEAR),
    "HeunDiscreteScheduler": Kind("euler", Heun, {**_LINEAR, **_LATENT}, clips=True),
    "KDPM2DiscreteScheduler": Kind("euler", Heun, {**_LINEAR, **_LATENT}, equal=False),
    "KDPM2AncestralDiscreteScheduler": Kind(
        "euler", Ancestral, {**_LINEAR, **_LATENT}, equal=False
    ),
    "DPMSolverSDEScheduler": Kind("euler", Ancestral, {**_LINEAR, **_LATENT}, equal=False),
    "LMSDiscreteScheduler": Kind("euler", Multistep, _LINEAR, equal=False),
    "DPMSolverMultistepScheduler": Kind("solver", Multistep, _LINEAR),
    "DPMSolverMultistepInverseScheduler": Kind("solver", Multistep, _LINEAR),
    "DPMSolverSinglestepScheduler": Kind("solver", Multistep, _LINEAR, equal=False),
    "UniPCMultistepScheduler": Kind("solver", Multistep, _LINEAR, equal=False),
    "DEISMultistepScheduler": Kind("solver", Multistep, _LINEAR, equal=False),
    "SASolverScheduler": Kind("solver", Ancestral, _LINEAR, equal=False),
    "LCMScheduler": Kind("lcm", Renoise, _DISTILLED, clips=True),
    "TCDScheduler": Kind("lcm", Transfer, _DISTILLED, equal=False),
    "EDMEulerScheduler": Kind("edm", Transfer, {}),
    "EDMDPMSolverMultistepScheduler": Kind("edm", Multistep, {}),
    "CMStochasticIterativeScheduler": Kind("consistency", Renoise, {}),
    "FlowMatchEulerDiscreteScheduler": Kind("flow", Transfer, {}),
    "FlowMatchHeunDiscreteScheduler": Kind("flow", Heun, {}),
    "FlowMatchLCMScheduler": Kind("flow", Renoise, {}),
}
"""The supported schedulers."""

_NOT_PIXELS = "it belongs to a pipeline of tokens, videos or latents, not to a UNet2DModel"
REFUSED = {
    "ScoreSdeVeScheduler": "it belongs to an NCSN++ score network, which our U-Net cannot be",
    "ScoreSdeVpScheduler": "diffusers no longer samples with it: use the DDPM of the same betas",
    "KarrasVeScheduler": "diffusers no longer samples with it: use EulerDiscreteScheduler",
    "IPNDMScheduler": "its network takes times from 0 to 1, in which our levels do not count",
    "CosineDPMSolverMultistepScheduler": "it belongs to a pipeline of audio latents",
    "SCMScheduler": "it belongs to a TrigFlow transformer on latents",
    **dict.fromkeys(
        (
            "AmusedScheduler",
            "BlockRefinementScheduler",
            "CogVideoXDDIMScheduler",
            "CogVideoXDPMScheduler",
            "ConsistencyDecoderScheduler",
            "DDPMWuerstchenScheduler",
            "DiscreteDDIMScheduler",
            "EntropyBoundScheduler",
            "FlowMapEulerDiscreteScheduler",
            "HeliosDMDScheduler",
            "HeliosScheduler",
            "LTXEulerAncestralRFScheduler",
            "MiniMaxH3Scheduler",
            "PiflowScheduler",
            "RFD4ProteinaScheduler",
            "VQDiffusionScheduler",
        ),
        _NOT_PIXELS,
    ),
}
"""Schedulers that are not supported, and why."""
