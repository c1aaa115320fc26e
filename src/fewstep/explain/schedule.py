"""The schedule: scales of image and noise over time, and the density of the training times."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fewstep import plugins
from fewstep.denoiser import Denoiser
from fewstep.explain.model import Model
from fewstep.formatting import quantity
from fewstep.methods.matching import DistributionMatching
from fewstep.process import Process
from fewstep.report.svg import INK, LOOKS, chart_file, chart_style, style_axes
from fewstep.times import Density

POINTS = 201
"""Points of a curve."""
MOST = 15.0
"""Largest log-SNR in the charts; at the ends of a flow it is infinite."""
WIDE = 5.0
"""Above this scale of the noise, scales have a logarithmic axis."""
FLOOR = 1e-2
"""Lowest value of that axis."""
LOGIT = 14.0
"""Densities are drawn from the quantile of 1/(1 + e^14) to that of its complement."""


@dataclass(frozen=True, eq=False)
class DensityCurve:
    """The density of a method's training times over log-SNR."""

    name: str
    """The key of the recipe, such as density."""
    log_snr: Float64[Tensor, " n"]
    density: Float64[Tensor, " n"]


def log_snr(process: Process, t: Tensor) -> Tensor:
    """ln(alpha²/sigma²) at times t."""
    return -2 * torch.log(process.ratio(t))


def training_densities(model: Model) -> list[DensityCurve]:
    """The densities of a method's settings, as curves; empty for a method without any."""
    settings = model.recipe and model.recipe.method
    student = model.generator.denoiser
    curves: list[DensityCurve] = []
    for name, density in _find_densities(settings):
        curves.append(density_curve(name, density, _network(model) or student))
    return curves


def density_curve(name: str, density: Density, denoiser: Denoiser) -> DensityCurve:
    """The density of the log-SNR of times that `density` draws for `denoiser`.

    With u uniform and q its quantile function, it is |du/dq|; the slopes are those between many
    quantiles, which are closest together at both ends.
    """
    logits = torch.linspace(-LOGIT, LOGIT, 4 * POINTS + 1, dtype=torch.float64)
    u = torch.sigmoid(logits)
    value = log_snr(denoiser.process, density.times(u, denoiser))
    # towards u = 1, the differences of 1 − u are exact and those of u are not
    step, width = -torch.sigmoid(-logits).diff(), value.diff().abs()
    step = torch.where(logits[1:] < 0, u.diff(), step)
    exists = width.isfinite() & (width > 1e-9)
    middle = 0.5 * (value[1:] + value[:-1])
    return DensityCurve(name, middle[exists], (step / width)[exists])


def _find_densities(settings: Any, prefix: str = "") -> Iterator[tuple[str, Density]]:
    """The densities among the settings of a method, and of the settings in them, by their keys."""
    for field in fields(settings) if is_dataclass(settings) else ():
        value, name = getattr(settings, field.name), f"{prefix}{field.name}"
        if isinstance(value, Density):
            yield name, value
        elif is_dataclass(value) and not prefix:
            yield from _find_densities(value, f"{name}.")


def _network(model: Model) -> Denoiser | None:
    """The network whose span bounds the training times, if it is not the student's."""
    if model.recipe is None:
        return None
    method = plugins.resolve("method", model.recipe.method_name)
    return model.teacher() if issubclass(method, DistributionMatching) else None


def draw_schedule(model: Model, steps: int) -> Figure:
    """Scales, log-SNR and density of training times, below each other.

    The dots are the times at which a sample of `steps` steps calls the network.
    """
    denoiser = model.generator.denoiser
    process, (low, high) = denoiser.process, denoiser.span
    densities = training_densities(model)
    t = torch.linspace(low, high, POINTS, dtype=torch.float64)
    times = model.generator.grid(model.generator.nearest(steps, quietly=True), denoiser)
    figure = Figure(figsize=(4.7, 2.4 * (3 if densities else 2)), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(3 if densities else 2).tolist()
    _draw_scales(axes[0], process, t, times)
    snr, points = _limit(log_snr(process, t)), _limit(log_snr(process, times))
    axes[1].plot(t.numpy(), snr.numpy(), color=LOOKS[0].colour, linewidth=1.6)
    name = plugins.name_of("sampler", type(model.generator.step))
    label = f"{quantity(len(times), 'step')} of {name}"
    axes[1].plot(times.numpy(), points.numpy(), **_dots(label))
    style_axes(axes[1], "t", "log-SNR")
    _legend(axes[1])
    if densities:
        _draw_densities(axes[2], densities, points)
        axes[2].set_xlim(*_ends(snr, densities))
    return figure


def save_schedule(model: Model, steps: int) -> str:
    """`draw_schedule` as the text of an SVG file."""
    with chart_style("schedule"):
        figure = draw_schedule(model, steps)
        name = plugins.name_of("process", type(model.generator.denoiser.process))
        describe = f"alpha, sigma and log-SNR of {name} over t, and the density of training times"
        return chart_file(figure, describe=describe)


def _draw_scales(axes: Axes, process: Process, t: Tensor, times: Tensor) -> None:
    is_log = float(process.sigma(t).max()) > WIDE
    for scale, look in zip((process.alpha, process.sigma), LOOKS, strict=False):
        values = scale(t).clamp(min=FLOOR) if is_log else scale(t)
        axes.plot(t.numpy(), values.numpy(), color=look.colour, linewidth=1.6, label=scale.__name__)
    if is_log:
        axes.set_yscale("log")
        axes.minorticks_off()
    style_axes(axes, "t", "scale")
    _legend(axes)


def _draw_densities(axes: Axes, densities: Sequence[DensityCurve], points: Tensor) -> None:
    for curve, look in zip(densities, LOOKS * len(densities), strict=False):
        axes.plot(
            curve.log_snr.numpy(),
            curve.density.numpy(),
            color=look.colour,
            linewidth=1.6,
            label=curve.name,
        )
    axes.plot(points.numpy(), torch.zeros_like(points).numpy(), **_dots(None))
    style_axes(axes, "log-SNR (left: noise, right: image)", "density of training times")
    _legend(axes)


def _ends(snr: Tensor, densities: Sequence[DensityCurve]) -> tuple[float, float]:
    """The range of log-SNR that the process has, or where training times are."""
    values = [snr, *(curve.log_snr for curve in densities)]
    return (
        max(-MOST, min(float(value.min()) for value in values)) - 0.5,
        min(MOST, max(float(value.max()) for value in values)) + 0.5,
    )


def _limit(values: Tensor) -> Tensor:
    return values.clamp(-MOST, MOST)


def _dots(label: str | None) -> dict[str, Any]:
    style = {"color": LOOKS[1].colour, "linestyle": "none", "marker": "o", "markersize": 4}
    return {**style, "clip_on": False, "label": label}


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=INK, fontsize=8.5)
