"""Line charts as SVG, inline or as a file, for light and dark pages.

Text and grid of an inline chart have the page's text colour, and its background is transparent; a
file has a background of its own, and both follow the reader's colour scheme. Lines have mid-tone
colours. Equal inputs give equal SVG.
"""

import io
import math
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK = "#010203"  # placeholder, replaced by currentColor, the page's text colour


class Look(NamedTuple):
    """Colour and marker of a line in charts."""

    colour: str
    marker: str
    """The marker's name in matplotlib."""
    glyph: str
    """The marker as a character, for legends."""


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
FILE_STYLE = (
    ".page{fill:#fff}svg{color:#1f2328;font-family:system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){.page{fill:#16191d}svg{color:#e6e8eb}}"
)
"""Colours and font of a chart in a file of its own."""
Span = tuple[float, float] | None
"""An interval (low, high); None if it is unknown."""


@dataclass(frozen=True)
class Line:
    """A line through (x, y) points. `dashed` also makes markers hollow; `faint` is for raw data."""

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
) -> Markup:
    """An `<svg>` with the lines, a dotted line at height `level`, and a staircase along `front`.

    `key` is a prefix that makes the ids unique on the page; `describe` is the text for screen
    readers. The x axis is logarithmic to base `x_base` (2 or 10) if that is set, the y axis if its
    values have a wide range, see `wide`.
    """
    with chart_style(key):
        figure = Figure(figsize=(4.7, 3.0), layout="constrained")
        axes = figure.add_subplot()
        values = [y for line in lines for _, y in line.points]
        floor = min(values) / 2 if wide(values) else -math.inf  # a log axis has no 0
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
        if wide(values):
            axes.set_yscale("log")
            _ticks(axes.yaxis, 10, values)
        style_axes(axes, x_label, y_label)
        opening, body = _svg(figure, describe)
    return opening + Markup(re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", body))


def chart_file(figure: Figure, *, describe: str) -> str:
    """The text of an SVG file of a figure, to call in the `chart_style` in which it was made.

    `describe` is the text for screen readers.
    """
    opening, body = _svg(figure, describe)
    names = Markup('<svg xmlns="http://www.w3.org/2000/svg"')
    names += Markup(' xmlns:xlink="http://www.w3.org/1999/xlink"')
    page = Markup('<style>{}</style><rect class="page" width="100%" height="100%"/>')
    # two decimals, which are far below a pixel, make a file half as large
    short = re.sub(r'(?<=[ "])-?\d+\.\d{3,}(?=[ "\n])', lambda m: f"{float(m[0]):.2f}", body)
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    names += Markup(' width="{}" height="{}"').format(width, height)
    start = names + opening.removeprefix("<svg") + page.format(Markup(FILE_STYLE))
    return str(start) + short


@contextmanager
def chart_style(key: str) -> Generator[None]:
    """The settings of matplotlib under which a chart is made; `key` makes its ids reproducible."""
    # fonttype none keeps text as text, in the page's font
    with matplotlib.rc_context({"svg.hashsalt": key, "svg.fonttype": "none", "font.size": 9}):
        yield


def _draw(axes: Axes, line: Line, floor: float) -> None:
    style: dict[str, Any] = {"color": line.look.colour, "linewidth": 1.6}
    if line.faint:
        style |= {"alpha": 0.3, "linewidth": 1}
    if line.dashed:
        style |= {"linestyle": (0, (3, 2)), "markerfacecolor": "none"}
    if line.markers:
        style |= {"marker": line.look.marker, "markersize": 5.5}
    axes.plot(*zip(*line.points, strict=True), **style)
    for (x, _), span in zip(line.points, line.spans, strict=bool(line.spans)):
        if span:
            ends = (max(span[0], floor), max(span[1], floor))
            axes.plot((x, x), ends, color=line.look.colour, linewidth=0.9, alpha=0.7)


def style_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Set labels, grid and colours of a chart's axes."""
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK, length=0)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)
    axes.spines[:].set_visible(False)


def wide(values: Sequence[float]) -> bool:
    """Whether values need a logarithmic axis: positive, spanning more than a factor of 5."""
    return max(values) > 5 * min(values) > 0


def _ticks(axis: Axis, base: int, values: Sequence[float]) -> None:
    # two decades or fewer leave room for ticks at 1, 2 and 5
    few_decades = base == 10 and max(values) < 100 * min(values)
    axis.set_major_locator(LogLocator(base, subs=(1, 2, 5) if few_decades else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _svg(figure: Figure, describe: str) -> tuple[Markup, str]:
    """The `<svg>` tag without a size, and what follows it, without fonts."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    svg_tag = re.search(r"<svg[^>]*>", svg)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert svg_tag and view_box
    body = svg[svg_tag.end() :].replace(INK, "currentColor")
    # the page sets its own styles and fonts
    body = re.sub(r"<style.*?</style>|font-family: [^;]*; ", "", body)
    opening = Markup('<svg role="img" aria-label="{}" {}>').format(describe, Markup(view_box[0]))
    return opening, body
