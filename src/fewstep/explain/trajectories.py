"""Trajectories of a sampler: in pixels, and in the plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image
from torch import Tensor

from fewstep import plugins
from fewstep.data.toys import GaussianMixture
from fewstep.drawing import seeds, start_noise
from fewstep.errors import InputError
from fewstep.explain.mixture import exact_denoiser, three_gaussians
from fewstep.explain.model import Model
from fewstep.explain.noising import COLUMNS, even_times
from fewstep.explain.sheets import draw_sheet
from fewstep.formatting import printable, quantity
from fewstep.generator import Generator
from fewstep.images import to_uint8
from fewstep.noise import noise_from_seeds
from fewstep.report.svg import INK, LOOKS, chart_file, chart_style, style_axes
from fewstep.sampling import Heun, path
from fewstep.trajectory import evenly_spread_indices, trace, why_no_states

IMAGES = 2
POINTS = 12
"""Samples in the plane."""
FLOW_STEPS = 48
"""Steps of Heun's method for the exact flow."""
EXTENT = 2.0
"""Largest coordinate that a chart shows; the first states of some samples are outside."""


@dataclass(frozen=True, eq=False)
class PlaneTrajectories:
    """Trajectories of points in the plane, as (states, points, 2)."""

    title: str
    sampled: Tensor | None
    """The states of the sampler; None for a sampler without states between its steps."""
    flow: Tensor | None
    """States of the probability flow from the same noise; None if it is not known."""
    mixture: GaussianMixture | None
    """The points' distribution; None if it is not known."""


def pixel_trajectory(model: Model, steps: int, *, seed: int = 0) -> Image.Image:
    """Some states of samples, and below each the image that the network predicts from it.

    Raises: InputError for a sampler without states between its steps, and for images that are not
    grey or RGB.
    """
    generator = model.generator
    if reason := why_no_states(generator):
        raise InputError(reason)
    rows, noise, cond = next(start_noise(generator, IMAGES, seed=seed, batch=IMAGES))
    way = trace(generator, noise, steps=steps, cond=cond, seed=seeds(seed, rows))
    last = len(way.times)
    indices = evenly_spread_indices(last + 1, COLUMNS)
    times = torch.tensor([way.times[i] for i in indices[:-1]], dtype=torch.float64)
    process = generator.denoiser.process
    columns = {
        name: [*(f"{value:.3g}" for value in values.tolist()), end]
        for name, values, end in (
            ("t", times, "image"),
            ("alpha", process.alpha(times), ""),
            ("sigma", process.sigma(times), ""),
        )
    }
    pictures: list[Sequence[Tensor | None]] = []
    for row in range(IMAGES):
        states = [to_uint8(way.states[i][row : row + 1] / way.scales[i])[0] for i in indices]
        images = [to_uint8(way.predictions[i][row : row + 1])[0] for i in indices[:-1]]
        pictures += [states, [*images, None]]
    is_scaled = any(abs(scale - 1) > 1e-3 for scale in way.scales)
    note = "x_t is shown as x_t / (alpha + sigma)" if is_scaled else ""
    return draw_sheet(pictures, ["x_t", "x0"] * IMAGES, columns, note)


@torch.inference_mode()
def plane_trajectories(model: Model, steps: int, *, seed: int = 0) -> PlaneTrajectories:
    """Trajectories in the plane: the model's own if its samples are points, else a mixture's.

    Those of the mixture have an exact denoiser, and the model's process, times and sampler.
    """
    generator = model.generator
    if model.is_trained and generator.spec.shape == (2,):
        return _own_trajectories(model, steps, seed)
    denoiser, mixture = generator.denoiser, three_gaussians()
    exact = exact_denoiser(mixture, denoiser.process, denoiser.span)
    times = generator.grid(generator.nearest(steps, quietly=True), denoiser)
    start = float(times[0])
    noise = noise_from_seeds(seeds(seed, range(POINTS)), (2,)).double()
    fine = even_times(denoiser.process, denoiser.span, FLOW_STEPS + 1, start=start)
    fine = fine[fine > fine[-1]]
    flow = torch.stack([*path(exact, noise, fine, step=Heun())])
    name = plugins.name_of("process", type(denoiser.process))
    sampled = None
    if not why_no_states(generator):
        noise = generator.grid.start_scale(start, denoiser) * noise
        own = seeds(seed, range(POINTS))
        sampled = torch.stack([*path(exact, noise, times, step=generator.step, seed=own)])
    title = f"exact denoiser of three Gaussians under {name}"
    return PlaneTrajectories(title, sampled, flow, mixture)


def _own_trajectories(model: Model, steps: int, seed: int) -> PlaneTrajectories:
    generator = model.generator
    rows, noise, cond = next(start_noise(generator, POINTS, seed=seed, batch=POINTS))
    states = generator.path(noise, steps=steps, cond=cond, seed=seeds(seed, rows))
    return PlaneTrajectories(
        f"points of {printable(model.name)}", torch.stack([*states]), None, None
    )


def draw_plane(trajectories: PlaneTrajectories, generator: Generator) -> Figure:
    """The trajectories as lines with a dot at each state, and the points at their ends."""
    figure = Figure(figsize=(4.7, 5.2), layout="constrained")
    axes = figure.add_subplot(aspect="equal")
    if trajectories.mixture:
        for mean in trajectories.mixture.means.tolist():
            circle = Circle(mean, 2 * trajectories.mixture.std, color=INK, alpha=0.12, linewidth=0)
            axes.add_patch(circle)
    ends = trajectories.flow
    if trajectories.flow is not None:
        for i, way in enumerate(trajectories.flow.unbind(1)):
            label = "exact probability flow" if i == 0 else None
            axes.plot(*way.T.numpy(), color=INK, alpha=0.35, linewidth=1, label=label)
    if trajectories.sampled is not None:
        ends = trajectories.sampled
        name = plugins.name_of("sampler", type(generator.step))
        label = f"{quantity(len(ends) - 1, 'step')} of {name}"
        for i, way in enumerate(ends.unbind(1)):
            style: Any = {"color": LOOKS[0].colour, "linewidth": 1, "marker": "o", "markersize": 2}
            axes.plot(*way.T.numpy(), **style, label=label if i == 0 else None)
    assert ends is not None
    axes.plot(*ends[-1].T.numpy(), color=LOOKS[1].colour, linestyle="none", marker="o",
              markersize=4, label="end")  # fmt: skip
    axes.set_xlim(-EXTENT, EXTENT)
    axes.set_ylim(-EXTENT, EXTENT)
    axes.set_title(trajectories.title, color=INK, fontsize=9, parse_math=False)
    style_axes(axes, "first coordinate of x_t", "second coordinate of x_t")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=INK, fontsize=8.5)
    return figure


def save_plane(trajectories: PlaneTrajectories, generator: Generator) -> str:
    """`draw_plane` as the text of an SVG file."""
    with chart_style("trajectories"):
        figure = draw_plane(trajectories, generator)
        describe = f"Trajectories in the plane: {trajectories.title}"
        return chart_file(figure, describe=describe)
