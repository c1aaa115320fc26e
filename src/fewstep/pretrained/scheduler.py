"""Scheduler settings of diffusers: the process, parametrization, sampler and grid that they imply.

Where diffusers' solver is not one of ours, the nearest one is used, with a warning.
docs/pretrained.md has the whole table.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch

from fewstep import plugins
from fewstep.errors import InputError, did_you_mean
from fewstep.parametrization import EDM, Clean, Eps, Parametrization, V, Velocity
from fewstep.pretrained.betas import ZERO_SNR
from fewstep.pretrained.folder import read_json
from fewstep.pretrained.parametrizations import EDMBoundary
from fewstep.pretrained.scheduler_classes import KINDS, REFUSED
from fewstep.pretrained.scheduler_settings import (
    ConsistencySettings,
    EdmSettings,
    FlowSettings,
    TableSettings,
)
from fewstep.pretrained.settings import read_settings
from fewstep.process import VE, Flow, Process
from fewstep.sampling import (
    Heun,
    Multistep,
    Renoise,
    Step,
    StochasticMultistep,
    Transfer,
    UniPC,
)
from fewstep.spacing import ShiftedGrid, TableGrid
from fewstep.times import FixedGrid, Grid, KarrasGrid

PREDICTIONS = {"epsilon": Eps, "v_prediction": V, "sample": Clean, "original_sample": Clean}
ZERO_SNR_ALONG_SIGMA = 2.0**-24
"""What diffusers' samplers along sigma take in place of a cumulative product of 0."""
UNIPC_START = 1e-6
"""Distance from t = 1 at which diffusers' UniPC starts under flow matching."""
CONSISTENCY_STEPS = (1, 2, 4, 8)
"""Step counts of a consistency model."""


@dataclass(frozen=True)
class Reading:
    """What a scheduler says about its network."""

    process: Process
    parametrization: Parametrization
    step: Step
    grid: Grid
    span: tuple[float, float] | None = None
    """Times at which the network can be used; None: those of its noise levels."""
    unet: Mapping[str, float] = field(default_factory=dict[str, float])
    """Settings of `UNetConfig` that turn our levels into those of the training."""


def read_scheduler(path: Path | None, address: str, changes: Mapping[str, Any]) -> Reading:
    """Read a scheduler's settings from a file, or from the `changes` alone if there is none.

    `changes` are settings that the address of the checkpoint contains. Raises InputError for a
    scheduler or a setting that is not supported.
    """
    where = address if path is None else path
    values = {**({} if path is None else read_json(path)), **changes}
    name = str(values.get("_class_name", "DDPMScheduler"))
    if name in REFUSED:
        raise InputError(f"{where}: {name} is not supported: {REFUSED[name]}")
    if name not in KINDS:
        hint = did_you_mean(name, list(KINDS))
        raise InputError(f"{where}: _class_name is {name!r}, not a known scheduler{hint}")
    if values.get("predict_epsilon") is False:  # in diffusers before there was prediction_type
        values.setdefault("prediction_type", "sample")
    kind = KINDS[name]
    for key in changes:
        if key not in kind.settings and key != "_class_name":
            raise InputError(f"{address}: {name} has no setting {key}: remove it")
    for key in ("clip_sample", "clip_denoised"):  # in diffusers null is false
        if key in values and values[key] is None:
            values[key] = False
    own = {k: v for k, v in values.items() if v is not None and k in kind.settings}
    values = {**kind.defaults, **own}
    match kind.family:
        case "edm":
            reading, equal = _read_edm(name, read_settings(EdmSettings, values, where))
        case "consistency":
            reading = _read_consistency(read_settings(ConsistencySettings, values, where))
            equal = True
        case "flow":
            reading, equal = _read_flow(name, read_settings(FlowSettings, values, where))
        case _:
            settings = read_settings(TableSettings, values, where)
            reading, equal = _read_table(name, settings, where)
    if not equal:
        ours = plugins.name_of("sampler", type(reading.step))
        warnings.warn(
            f"{where}: fewstep does not have the solver of {name} with these settings: it samples "
            f"by {ours}, the nearest that it has",
            stacklevel=3,
        )
    return reading


def _read_table(name: str, settings: TableSettings, where: Path | str) -> tuple[Reading, bool]:
    """The reading, and whether our sampler is the class's own."""
    if settings.use_flow_sigmas:
        return _read_flow_solver(name, settings, where)
    if settings.prediction_type == "flow_prediction":
        raise InputError(
            f"{where}: prediction_type = 'flow_prediction' is not supported: {name} has the noise "
            "levels of a table"
        )
    try:
        along_sigma = KINDS[name].family in ("euler", "solver")
        process = settings.process(ZERO_SNR_ALONG_SIGMA if along_sigma else ZERO_SNR)
    except ValueError as error:
        raise InputError(f"{where}: its betas are not a noise schedule: {error}") from error
    parametrization = PREDICTIONS[settings.prediction_type](process)
    span = None
    if settings.ends_in_noise and isinstance(parametrization, Eps):
        last = settings.levels - 1
        span = (0.0, (last - 1) / last)
        warnings.warn(
            f"{where}: its last level is pure noise, from which a network that predicts the noise "
            f"cannot give an image: sampling starts one level below, at timestep {last - 1}",
            stacklevel=4,
        )
    solver, equal = _solver(name, settings)
    step, grid = _clipped(solver, settings, where), _table_grid(name, settings, process)
    if isinstance(step, Heun):
        # diffusers' slopes are along sigma/alpha, which is the time of VE
        table, process = process, VE(float(process.ratio(torch.ones((), dtype=torch.float64))))
        if span:
            span = tuple(
                process.time(table.ratio(torch.tensor(span, dtype=torch.float64))).tolist()
            )
    return Reading(process, parametrization, step, grid, span), equal


def _solver(name: str, settings: TableSettings | EdmSettings) -> tuple[Step, bool]:
    """Our sampler, and whether it is the class's own."""
    kind = KINDS[name]
    if name == "UniPCMultistepScheduler" and isinstance(settings, TableSettings):
        return _unipc(settings)
    if "DPMSolver" not in name or name == "DPMSolverSDEScheduler":
        return kind.step(), kind.equal
    if settings.algorithm_type.startswith("sde"):
        order = 1 if settings.solver_order == 1 else 2
        equal = settings.algorithm_type == "sde-dpmsolver++" and settings.solver_order == order
        midpoint = order == 1 or settings.solver_type != "heun"
        return StochasticMultistep(order), equal and midpoint
    if settings.solver_order == 1:
        return Transfer(), True
    plain = settings.algorithm_type != "dpmsolver" and settings.solver_type != "heun"
    if settings.solver_order == 2:
        return kind.step(), kind.equal and plain
    # with lower_order_final, the last step but one of fewer than 15 is of order 2
    return Multistep(order=3), kind.equal and plain and not settings.lower_order_final


def _unipc(settings: TableSettings) -> tuple[Step, bool]:
    """Our UniPC, and whether it is that of the scheduler."""
    published = settings.predict_x0 and not settings.disable_corrector
    published = published and settings.solver_type != "bh1"
    order = 3 if settings.solver_order == 3 else 2
    return UniPC(order), published and settings.solver_order == order


def _clipped(step: Step, settings: TableSettings, where: Path | str) -> Step:
    """The sampler with the scheduler's bound of the predicted image."""
    if settings.thresholding and settings.clip is None:
        warnings.warn(
            f"{where}: thresholding is on with sample_max_value = {settings.sample_max_value}, but "
            "dynamic thresholding is not supported: it is ignored",
            stacklevel=4,
        )
    clips = "clip" in {f.name for f in fields(cast(Any, step))}
    return replace(cast(Any, step), clip=settings.clip) if clips else step


def _table_grid(name: str, settings: TableSettings, process: Process) -> TableGrid:
    levels, spacing = settings.levels, settings.timestep_spacing
    match KINDS[name].family:
        case "lcm":
            return TableGrid(levels, "lcm", original=settings.original_inference_steps)
        case "euler":
            return TableGrid(
                levels,
                spacing,
                settings.steps_offset,
                rounded=False,
                curve=settings.curve,
                unit_start=spacing == "leading",
            )
        case "solver":
            t = torch.linspace(0, 1, levels, dtype=torch.float64)
            skipped = int((-torch.log(process.ratio(t)) < settings.lambda_min_clipped).sum())
            return TableGrid(
                levels,
                spacing,
                settings.steps_offset,
                open_end=True,
                last=levels - 1 - skipped if skipped else None,
                curve=settings.curve,
            )
        case _:
            return TableGrid(levels, spacing, settings.steps_offset)


def _read_edm(name: str, settings: EdmSettings) -> tuple[Reading, bool]:
    """The network's level is ln(sigma)/4, without a factor."""
    step, equal = _solver(name, settings)
    parametrization = EDM(settings.sigma_data, settings.sigma_min, settings.sigma_max)
    grid = (
        KarrasGrid(settings.rho)
        if settings.sigma_schedule == "karras"
        else TableGrid(open_end=True, curve="exponential")
    )
    process = VE(settings.sigma_max)
    unet = {"level_scale": 1.0, "pace": 1.0}
    return Reading(process, parametrization, step, grid, unet=unet), equal


def _read_consistency(settings: ConsistencySettings) -> Reading:
    """The network's level is 250·ln(sigma); its times are steps of a Karras grid."""
    process, levels = VE(settings.sigma_max), settings.num_train_timesteps
    low, high = (sigma ** (1 / settings.rho) for sigma in (settings.sigma_min, settings.sigma_max))
    rows: list[tuple[float, ...]] = []
    for steps in (count for count in CONSISTENCY_STEPS if count <= levels):
        share = torch.arange(steps, dtype=torch.float64) * (levels // steps) / max(levels - 1, 1)
        rows.append(tuple(process.time((high + share * (low - high)) ** settings.rho).tolist()))
    return Reading(
        process,
        EDMBoundary(settings.sigma_data, settings.sigma_min, settings.sigma_max),
        Renoise(clip=1.0 if settings.clip_denoised else None),
        FixedGrid(tuple(rows)),
        unet={"level_scale": 1000.0, "pace": 1.0},
    )


def _read_flow(name: str, settings: FlowSettings) -> tuple[Reading, bool]:
    """The shift is applied to the ends of the times, and then to all of them, as in diffusers."""
    shift, last = settings.shift, 1 / settings.num_train_timesteps
    curve = "beta" if settings.use_beta_sigmas else None
    curve = "exponential" if settings.use_exponential_sigmas else curve
    curve = "karras" if settings.use_karras_sigmas else curve
    grid = ShiftedGrid(shift, low=shift * last / (1 + (shift - 1) * last), curve=curve)
    step = Renoise() if settings.stochastic_sampling else KINDS[name].step()
    return _flow_reading(step, grid, settings.num_train_timesteps), True


def _read_flow_solver(
    name: str, settings: TableSettings, where: Path | str
) -> tuple[Reading, bool]:
    if settings.prediction_type != "flow_prediction" or settings.curve:
        raise InputError(
            f"{where}: use_flow_sigmas is not supported with prediction_type = "
            f"{settings.prediction_type!r} and other sigmas: it needs 'flow_prediction' alone"
        )
    last = 1 / settings.levels
    low, high = 0.0, 1 - last
    if name.startswith("UniPC"):  # it starts just below t = 1, where the log-SNR is finite
        low, high = last, 1 - UNIPC_START * settings.flow_shift
    grid = ShiftedGrid(settings.flow_shift, low, high, open_end=True)
    step, equal = _solver(name, settings)
    return _flow_reading(_clipped(step, settings, where), grid, settings.levels), equal


def _flow_reading(step: Step, grid: Grid, levels: int) -> Reading:
    return Reading(Flow(), Velocity(Flow()), step, grid, unet={"pace": levels / 1000})
