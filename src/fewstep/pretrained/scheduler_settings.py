"""Settings of diffusers' schedulers, one class a family; their types allow what we support."""

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from fewstep.pretrained.betas import Betas
from fewstep.spacing import Curve

Prediction = Literal["epsilon", "v_prediction", "sample", "original_sample", "flow_prediction"]
Off = Literal[False] | None


@dataclass(frozen=True)
class TableSettings(Betas):
    """Settings of a scheduler with a table of noise levels; the types allow what we support."""

    prediction_type: Prediction = "epsilon"
    clip_sample: bool | None = None
    clip_sample_range: float = 1.0
    thresholding: bool | None = False
    sample_max_value: float = 1.0
    timestep_spacing: Literal["leading", "trailing", "linspace"] = "leading"
    steps_offset: int = 0
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    use_lu_lambdas: bool | None = False
    use_flow_sigmas: bool | None = False
    flow_shift: float = 1.0
    use_dynamic_shifting: Off = False
    shift_terminal: None = None
    sigma_min: None = None
    sigma_max: None = None
    interpolation_type: Literal["linear"] = "linear"
    timestep_type: Literal["discrete"] = "discrete"
    lambda_min_clipped: float = float("-inf")
    original_inference_steps: PositiveInt = 50
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    solver_order: int = 2
    lower_order_final: bool = True
    predict_x0: bool = True
    disable_corrector: tuple[int, ...] = ()

    @property
    def clip(self) -> float | None:
        """Bound to which the predicted image is clipped; None if it is not."""
        if self.thresholding:  # up to a maximum of 1, thresholding is clipping
            return 1.0 if self.sample_max_value <= 1 else None
        return self.clip_sample_range if self.clip_sample else None

    @property
    def curve(self) -> Curve | None:
        """The curve on which the levels are spaced."""
        if self.use_karras_sigmas:
            return "karras"
        if self.use_exponential_sigmas or self.use_lu_lambdas:
            return "exponential"
        return "beta" if self.use_beta_sigmas else None


@dataclass(frozen=True)
class EdmSettings:
    """Settings of a scheduler of Karras et al. 2022, arXiv:2206.00364."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    sigma_schedule: Literal["karras", "exponential"] = "karras"
    prediction_type: Literal["epsilon"] = "epsilon"
    rho: float = 7.0
    thresholding: Off = False
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    solver_order: int = 2
    lower_order_final: bool = True


@dataclass(frozen=True)
class ConsistencySettings:
    """Settings of the scheduler of consistency models.  Song et al. 2023, arXiv:2303.01469."""

    num_train_timesteps: PositiveInt = 40
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    s_noise: Literal[1] = 1
    rho: float = 7.0
    clip_denoised: bool = True


@dataclass(frozen=True)
class FlowSettings:
    """Settings of a scheduler of flow matching."""

    num_train_timesteps: PositiveInt = 1000
    shift: float = 1.0
    use_dynamic_shifting: Off = False
    invert_sigmas: Off = False
    shift_terminal: None = None
    use_karras_sigmas: bool | None = False
    use_exponential_sigmas: bool | None = False
    use_beta_sigmas: bool | None = False
    stochastic_sampling: bool | None = False
    scale_factors: None = None
