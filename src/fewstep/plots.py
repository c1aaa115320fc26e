"""Pictures for an HTML page, inline: line plots as SVG, rows of images as PNG.

Both suit light and dark pages: what is not data is drawn in the page's own text colour or left
clear, and data in mid-tones. Equal inputs give equal text.
"""

import base64
import io
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


YARDSTICK = Look("#868e99", "o", "●")
LOOKS = (
    Look("#3b82d6", "s", "■"),
    Look("#e0772f", "^", "▲"),
    Look("#2f9e62", "D", "◆"),
    Look("#b05fd0", "v", "▼"),
    Look("#d0577f", "P", "✚"),
    Look("#1d9bb0", "X", "✖"),
)


@dataclass(frozen=True)
class Line:
    """Points in order of x. `dashed` also leaves the markers hollow; `faint` is for raw data."""

    x: Sequence[float]
    y: Sequence[float]
    look: Look
    dashed: bool = False
    faint: bool = False
    markers: bool = True


def chart(
    lines: Sequence[Line],
    *,
    key: str,
    describe: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    level: float | None = None,
) -> str:
    """An `<svg>` of the lines, and a dotted one across at `level`.

    `key` keeps the ids of several charts on one page apart; `describe` is read out in its stead.
    The y axis is logarithmic where the numbers span more than a factor of five.
    """
    # hashsalt: ids would be random otherwise; fonttype: text stays text, in the page's font
    with matplotlib.rc_context({"svg.hashsalt": key, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(5.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _draw(axes, line)
        if level is not None:
            axes.axhline(level, color=YARDSTICK.colour, linewidth=1, linestyle=":", zorder=1)
        _style(axes, x_label, y_label, log_x, [y for line in lines for y in line.y])
        file = io.StringIO()
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=unsaid)
    return _inline(file.getvalue(), key, describe)


def _draw(axes: Axes, line: Line) -> None:
    style: dict[str, Any] = {"color": line.look.colour, "linewidth": 1.6}
    if line.faint:
        style |= {"alpha": 0.3, "linewidth": 1}
    if line.dashed:
        style |= {"linestyle": (0, (3, 2)), "markerfacecolor": "none"}
    if line.markers:
        style |= {"marker": line.look.marker, "markersize": 5.5}
    axes.plot(line.x, line.y, **style)


def _style(axes: Axes, x_label: str, y_label: str, log_x: bool, values: list[float]) -> None:
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    if log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(plain)
        axes.xaxis.set_minor_locator(NullLocator())
    if max(values) > 5 * min(values) > 0:
        axes.set_yscale("log")
        # one and a half decades leave room for 1-2-5, more for the decades alone
        near = max(values) < 50 * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if near else (1,)))
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK, length=0)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)
    axes.spines[:].set_visible(False)


def _inline(svg: str, key: str, describe: str) -> str:
    """The picture alone, its ids made the page's, its size left to the page."""
    opening = re.search(r"<svg[^>]*>", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert opening and box
    body = svg[opening.end() :].replace(INK, "currentColor")
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", body)
    body = re.sub(r"<style.*?</style>|font-family: [^;]*; ", "", body)  # the page has its own
    return f'<svg role="img" aria-label="{escape(describe)}" {box[0]}>{body}'


def curve(x: Sequence[float], y: Sequence[float], look: Look) -> list[Line]:
    """A noisy curve: as it is, faintly, and its running mean over a twentieth of it."""
    bins = min(len(x), POINTS)
    thin_x, thin_y = (np.array([part.mean() for part in np.array_split(v, bins)]) for v in (x, y))
    reach = np.ones(2 * (bins // 40) + 1)
    share = np.convolve(np.ones(bins), reach, "same")  # fewer neighbours at the ends
    smooth = np.convolve(thin_y, reach, "same") / share
    return [
        Line(thin_x.tolist(), thin_y.tolist(), look, faint=True, markers=False),
        Line(thin_x.tolist(), smooth.tolist(), look, markers=False),
    ]


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
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
