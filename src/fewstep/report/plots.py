"""Pictures for an HTML page, inline: line plots as SVG, rows of images as PNG.

Both suit light and dark pages: what is not data is drawn in the page's own text colour or left
clear, and data in mid-tones. Equal inputs give equal text.
"""

import base64
import io
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image
from torch import Tensor
from torch.nn import functional

INK = "#010203"  # stands for the page's text colour, which is known to the browser alone
POINTS = (
    300  # a curve of more is drawn from averages: no screen shows more, and the file stays small
)


class Look(NamedTuple):
    """How one competitor is drawn: colour, and a marker as matplotlib and as Unicode name it."""

    colour: str
    marker: str
    glyph: str


BASELINE = Look("#868e99", "o", "●")
LOOKS = (
    Look("#3b82d6", "s", "■"),
    Look("#e0772f", "^", "▲"),
    Look("#2f9e62", "D", "◆"),
    Look("#b05fd0", "v", "▼"),
    Look("#d0577f", "P", "✚"),
    Look("#1d9bb0", "X", "✖"),
    Look("#a3812b", "*", "★"),
    Look("#6b6fd6", "p", "⬟"),
)
Span = tuple[float | None, float | None]
"""Of an interval: from where to where, if that is known."""


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order. `dashed` also leaves the markers hollow; `faint` is for raw data."""

    points: Sequence[tuple[float, float]]
    look: Look
    dashed: bool = False
    faint: bool = False
    markers: bool = True
    spans: Sequence[Span] = ()
    """The interval of each point, drawn as a thin bar."""


def chart(
    lines: Sequence[Line],
    *,
    key: str,
    describe: str,
    x_label: str,
    y_label: str,
    x_base: int | None = None,
    level: float | None = None,
    front: Sequence[tuple[float, float]] = (),
) -> str:
    """An `<svg>` of the lines, a dotted one across at `level`, and a staircase through `front`.

    `key` keeps the ids of several charts on one page apart; `describe` is read out in its stead.
    The x axis is logarithmic to `x_base`, 2 or 10, where that is given; the y axis where its
    numbers are `wide`.
    """
    # hashsalt: ids would be random otherwise; fonttype: text stays text, in the page's font
    with matplotlib.rc_context({"svg.hashsalt": key, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(4.7, 3.0), layout="constrained")
        axes = figure.add_subplot()
        values = [y for line in lines for _, y in line.points]
        floor = min(values) / 2 if wide(values) else -math.inf  # no logarithm shows a bar to 0
        for line in lines:
            _draw(axes, line, floor)
        if front:
            end = max(x for line in lines for x, _ in line.points)
            xs, ys = zip(*front, (end, front[-1][1]), strict=True)
            axes.step(xs, ys, where="post", color=INK, alpha=0.13, linewidth=6, zorder=1)
        if level is not None:
            axes.axhline(level, color=BASELINE.colour, linewidth=1, linestyle=":", zorder=1)
        if x_base:
            axes.set_xscale("log", base=x_base)
            _ticks(axes.xaxis, x_base, [x for line in lines for x, _ in line.points])
        _style(axes, x_label, y_label, values)
        file = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=unsaid)
    return _inline(file.getvalue(), key, describe)


def _draw(axes: Axes, line: Line, floor: float) -> None:
    style: dict[str, Any] = {"color": line.look.colour, "linewidth": 1.6}
    if line.faint:
        style |= {"alpha": 0.3, "linewidth": 1}
    if line.dashed:
        style |= {"linestyle": (0, (3, 2)), "markerfacecolor": "none"}
    if line.markers:
        style |= {"marker": line.look.marker, "markersize": 5.5}
    axes.plot(*zip(*line.points, strict=True), **style)
    for (x, _), (low, high) in zip(line.points, line.spans, strict=bool(line.spans)):
        if low is not None and high is not None:
            ends = (max(low, floor), max(high, floor))
            axes.plot((x, x), ends, color=line.look.colour, linewidth=0.9, alpha=0.7)


def _style(axes: Axes, x_label: str, y_label: str, values: Sequence[float]) -> None:
    if wide(values):
        axes.set_yscale("log")
        _ticks(axes.yaxis, 10, values)
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK, length=0)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)
    axes.spines[:].set_visible(False)


def wide(values: Sequence[float]) -> bool:
    """Whether these numbers ask for a logarithmic axis: positive, over more than a factor of 5."""
    return max(values) > 5 * min(values) > 0


def _ticks(axis: Axis, base: int, values: Sequence[float]) -> None:
    # over few decades there is room for ticks at 1, 2, 5
    near = base == 10 and max(values) < 100 * min(values)
    axis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if near else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _inline(svg: str, key: str, describe: str) -> str:
    """The picture alone, its ids made the page's, its size left to the page."""
    opening = re.search(r"<svg[^>]*>", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert opening and box
    body = svg[opening.end() :].replace(INK, "currentColor")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", body)
    body = re.sub(r"<style.*?</style>|font-family: [^;]*; ", "", body)  # the page has its own
    return f'<svg role="img" aria-label="{escape(describe)}" {box[0]}>{body}'


def curve(points: Sequence[tuple[float, float]], look: Look) -> list[Line]:
    """A noisy curve: as it is, faintly, and its running mean over a twentieth of it."""
    together = -(-len(points) // POINTS)  # alike all along, or the noise would seem to change
    parts = np.split(np.array(points), range(together, len(points), together))
    x, y = np.array([part.mean(axis=0) for part in parts]).T
    window = np.ones(2 * (len(y) // 40) + 1)
    neighbours = np.convolve(np.ones(len(y)), window, "same")  # fewer at the ends
    mean = np.convolve(y, window, "same") / neighbours
    raw = list(zip(x.tolist(), y.tolist(), strict=True))
    smooth = list(zip(x.tolist(), mean.tolist(), strict=True))
    return [Line(raw, look, faint=True, markers=False), Line(smooth, look, markers=False)]


def mark(look: Look) -> str:
    """A marker as the charts draw it."""
    return f'<span style="color:{look.colour}" aria-hidden="true">{look.glyph}</span>'


def figure(caption: str, picture: str, legend: Iterable[str] = ()) -> str:
    """A picture under its caption and legend, all HTML."""
    keys = "".join(f"<li>{key}</li>" for key in legend)
    shown = f'<ul class="legend">{keys}</ul>\n' if keys else ""
    return f"<figure>\n<figcaption>{caption}</figcaption>\n{shown}{picture}</figure>\n"


def gap(width: int) -> int:
    """Clear pixels between images of this width."""
    return max(1, width // 10)


def strip(images: UInt8[Tensor, "n c h w"]) -> str:
    """All images in one row, as a PNG's data URI: their own pixels, for the browser to enlarge."""
    n, c, h, w = images.shape
    opaque = torch.full((n, 1, h, w), 255, dtype=torch.uint8)
    spaced = functional.pad(torch.cat([images, opaque], 1), (0, gap(w)))
    pixels = spaced.permute(2, 0, 3, 1).reshape(h, -1, c + 1)[:, : -gap(w)]
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, format="PNG", optimize=True)
    return inline(file.getvalue())


def inline(png: bytes) -> str:
    """A PNG file as a data URI: the page fetches nothing."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
