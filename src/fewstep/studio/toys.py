"""Pictures of 2-D toys: points, the jumps of a sampler, and arrows of the velocity."""

import io

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fewstep.studio.journey import arrows
from fewstep.studio.workshop import Request
from fewstep.trajectory import Trajectory

POINTS = 500
ARROWS = 17
"""Arrows along each side of the picture."""
WAYS = 60
"""Points whose jumps are drawn as lines."""
MARGIN = 1.1


def scatter(points: Tensor) -> Image.Image:
    """Generated points (n, d) in two coordinates; see `_plane`."""
    figure, axes = _axes(_extent(points))
    axes.scatter(*_plane(points).T.numpy(), s=4, alpha=0.6, linewidths=0)
    return _render(figure)


def jumps(journey: Trajectory, request: Request, index: int) -> Image.Image:
    """The states up to number `index` as jumps; in 2-D, with the velocity at that state's time."""
    extent = _extent(torch.cat(journey.states))
    figure, axes = _axes(extent)
    if index < len(journey.times) and request.model.shape == (2,):
        side = torch.linspace(-extent, extent, ARROWS)
        grid = torch.cartesian_prod(side, side)
        # along the sample, time decreases: the arrows point to where the points move next
        velocity = -arrows(request, journey.times[index], grid)
        axes.quiver(*grid.T.numpy(), *velocity.T.numpy(), color="0.7", width=0.003)
    ways = _plane(torch.stack(journey.states[: index + 1]))
    _draw_ways(axes, ways)
    return _render(figure)


def _draw_ways(axes: Axes, ways: Tensor) -> None:
    """The jumps (steps, points, 2) as lines of some points, and all points at their ends."""
    for way in ways[:, :WAYS].unbind(1):
        axes.plot(*way.T.numpy(), color="C0", alpha=0.3, linewidth=0.7, marker=".", markersize=2)
    axes.scatter(*ways[-1].T.numpy(), s=5, color="C3", linewidths=0, zorder=3)


def _plane(points: Tensor) -> Tensor:
    """The first two coordinates (..., 2) of points (..., d); 0 stands in for a missing second."""
    return torch.nn.functional.pad(points, (0, 1))[..., :2]


def _extent(points: Tensor) -> float:
    """The range of the axes that shows nearly all points, at least −1 to 1."""
    return max(1.0, MARGIN * float(torch.quantile(points.abs().flatten(), 0.995)))


def _axes(extent: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 4.8), dpi=100, layout="tight")
    limits = -extent, extent
    axes = figure.add_subplot(xlim=limits, ylim=limits, aspect="equal")
    axes.tick_params(labelsize=7)
    return figure, axes


def _render(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return Image.open(file)
