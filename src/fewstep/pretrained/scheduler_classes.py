"""The scheduler classes of diffusers: what each is read as, or why it is not supported."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fewstep.sampling import Ancestral, Heun, Multistep, Renoise, Step, Transfer, UniPC


@dataclass(frozen=True)
class Kind:
    """A class of schedulers: its family, our sampler, and the settings that it has."""

    family: Literal["ddpm", "euler", "solver", "lcm", "edm", "consistency", "flow"]
    step: type[Step]
    settings: frozenset[str]
    """Settings that the class reads; its file may hold others, of the class it was converted
    from."""
    defaults: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Defaults that differ from those of the family's settings."""
    equal: bool = True
    """Whether our sampler computes what diffusers' computes."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TABLE = _names("num_train_timesteps beta_start beta_end beta_schedule trained_betas")
_PREDICTS = _TABLE | {"prediction_type"}
_SPACED = _PREDICTS | {"timestep_spacing", "steps_offset"}
_RESCALED = {"rescale_betas_zero_snr"}
_CLIP = _names("clip_sample clip_sample_range")
_THRESHOLD = _names("thresholding sample_max_value")
_SIGMAS = _names("use_karras_sigmas use_exponential_sigmas use_beta_sigmas")
_FLOW_SIGMAS = _names("use_flow_sigmas flow_shift")
_SOLVER = _names("algorithm_type solver_type solver_order lower_order_final")
_SHIFT = {"use_dynamic_shifting"}
_RANGE = _names("sigma_min sigma_max")

_DDIM_INVERSE = _SPACED | _RESCALED | _CLIP
_DDPM = _DDIM_INVERSE | _THRESHOLD
_EULER = _SPACED | _RESCALED | _SIGMAS | _RANGE | _names("interpolation_type timestep_type")
_HIGHER = _SPACED | _SIGMAS | _FLOW_SIGMAS | _THRESHOLD
_DPM_INVERSE = _HIGHER | _SOLVER | {"lambda_min_clipped"}
_DPM = _DPM_INVERSE | _RESCALED | _SHIFT | {"use_lu_lambdas"}
_SINGLESTEP = (_DPM_INVERSE | _SHIFT) - {"timestep_spacing", "steps_offset"}
_UNIPC_ALONE = _names("solver_type solver_order lower_order_final predict_x0 disable_corrector")
_UNIPC = _HIGHER | _RESCALED | _SHIFT | _RANGE | _UNIPC_ALONE | {"shift_terminal"}
_EDM = _RANGE | _names("sigma_data sigma_schedule prediction_type rho")
_CONSISTENCY = _RANGE | _names("num_train_timesteps sigma_data s_noise rho clip_denoised")
_FLOW = _names("num_train_timesteps shift")
_FLOW_LCM = _FLOW | _SHIFT | _SIGMAS | _names("invert_sigmas shift_terminal scale_factors")
_FLOW_EULER = (_FLOW_LCM | {"stochastic_sampling"}) - {"scale_factors"}

_LINSPACE = {"timestep_spacing": "linspace"}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
_ALONG_SIGMA = {**_LINSPACE, **_LATENT}
_DISTILLED = {**_LATENT, "beta_schedule": "scaled_linear"}
_CLIPS = {"clip_sample": True}
_COSINE = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace", **_CLIPS}

KINDS = {
    "DDPMScheduler": Kind("ddpm", Transfer, _DDPM, _CLIPS),
    "DDPMParallelScheduler": Kind("ddpm", Transfer, _DDPM, _CLIPS),
    "DDIMScheduler": Kind("ddpm", Transfer, _DDPM, _CLIPS),
    "DDIMParallelScheduler": Kind("ddpm", Transfer, _DDPM, _CLIPS),
    "DDIMInverseScheduler": Kind("ddpm", Transfer, _DDIM_INVERSE, _CLIPS),
    "RePaintScheduler": Kind("ddpm", Transfer, _TABLE | {"clip_sample"}, _CLIPS),
    "UnCLIPScheduler": Kind(
        "ddpm",
        Transfer,
        _CLIP | _names("num_train_timesteps beta_schedule prediction_type"),
        _COSINE,
    ),
    "PNDMScheduler": Kind("ddpm", Multistep, _SPACED, equal=False),
    "EulerDiscreteScheduler": Kind("euler", Transfer, _EULER, _LINSPACE),
    "EulerAncestralDiscreteScheduler": Kind("euler", Ancestral, _SPACED | _RESCALED, _LINSPACE),
    "HeunDiscreteScheduler": Kind("euler", Heun, _SPACED | _SIGMAS | _CLIP, _ALONG_SIGMA),
    "KDPM2DiscreteScheduler": Kind("euler", Heun, _SPACED | _SIGMAS, _ALONG_SIGMA, equal=False),
    "KDPM2AncestralDiscreteScheduler": Kind(
        "euler", Ancestral, _SPACED | _SIGMAS, _ALONG_SIGMA, equal=False
    ),
    "DPMSolverSDEScheduler": Kind("euler", Ancestral, _SPACED | _SIGMAS, _ALONG_SIGMA, equal=False),
    "LMSDiscreteScheduler": Kind("euler", Multistep, _SPACED | _SIGMAS, _LINSPACE, equal=False),
    "DPMSolverMultistepScheduler": Kind("solver", Multistep, _DPM, _LINSPACE),
    "DPMSolverMultistepInverseScheduler": Kind("solver", Multistep, _DPM_INVERSE, _LINSPACE),
    "DPMSolverSinglestepScheduler": Kind("solver", Multistep, _SINGLESTEP, _LINSPACE, equal=False),
    "UniPCMultistepScheduler": Kind("solver", UniPC, _UNIPC, _LINSPACE),
    "DEISMultistepScheduler": Kind(
        "solver", Multistep, _HIGHER | _SOLVER | _SHIFT, _LINSPACE, equal=False
    ),
    "SASolverScheduler": Kind(
        "solver",
        Ancestral,
        _HIGHER | _names("algorithm_type lambda_min_clipped lower_order_final"),
        _LINSPACE,
        equal=False,
    ),
    "LCMScheduler": Kind("lcm", Renoise, _DDPM | {"original_inference_steps"}, _DISTILLED),
    # it has settings of clipping, which its steps ignore
    "TCDScheduler": Kind(
        "lcm",
        Transfer,
        _SPACED | _RESCALED | {"original_inference_steps"},
        _DISTILLED,
        equal=False,
    ),
    "EDMEulerScheduler": Kind("edm", Transfer, _EDM),
    "EDMDPMSolverMultistepScheduler": Kind("edm", Multistep, _EDM | _SOLVER | {"thresholding"}),
    "CMStochasticIterativeScheduler": Kind("consistency", Renoise, _CONSISTENCY),
    "FlowMatchEulerDiscreteScheduler": Kind("flow", Transfer, _FLOW_EULER),
    "FlowMatchHeunDiscreteScheduler": Kind("flow", Heun, _FLOW),
    "FlowMatchLCMScheduler": Kind("flow", Renoise, _FLOW_LCM),
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
