import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.report.charts import POINTS, curve
from fewstep.report.svg import BASELINE, LOOKS, Line, chart, wide


def drawn(svg):
    """The chart's texts, and each line's points as drawn, in units of the picture."""
    tree = ElementTree.fromstring(str(svg).replace("<svg ", '<svg xmlns:xlink="x" ', 1))
    texts = [node.text for node in tree.iter("text")]
    paths = {}
    for node in tree.iter("path"):
        colour = re.search(r"stroke: (#\w+)", node.get("style", ""))
        if colour and "fill: none" in node.get("style", "") and node.get("clip-path"):
            found = re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", node.get("d"))
            paths.setdefault(colour[1], []).append(np.array(found, dtype=float))
    return texts, paths


def picture(points, **told):
    return chart([Line(points, LOOKS[0])], key="k", describe='a "b"', x_label="cost",
                 y_label="far", **told)  # fmt: skip


def test_points_are_where_they_belong():
    texts, paths = drawn(picture([(1, 80.0), (4, 10.0), (16, 5.0)], x_base=2))
    (line,) = paths[LOOKS[0].colour]
    assert [*map(str, (1, 2, 4, 8, 16))] == [t for t in texts if t in "1 2 4 8 16".split()]
    x, y = line[:, 0], -line[:, 1]
    assert (x[1] - x[0]) == pytest.approx(x[2] - x[1], rel=1e-6)  # equal ratios, equal steps
    assert (y[0] - y[1]) == pytest.approx(3 * (y[1] - y[2]), rel=1e-6)  # 80/10 = (10/5)³


def test_a_narrow_range_is_drawn_linearly():
    _, paths = drawn(picture([(0, 1.0), (1, 2.0), (3, 4.0)]))
    (line,) = paths[LOOKS[0].colour]
    assert np.diff(line[:, 1])[1] == pytest.approx(2 * np.diff(line[:, 1])[0], rel=1e-6)
    assert not wide([1.0, 5.0]) and wide([1.0, 5.1]) and not wide([-1.0, 50.0])


def test_the_level_is_drawn_across():
    _, paths = drawn(picture([(1, 80.0), (4, 20.0)], level=20.0))
    (level,), (line,) = paths[BASELINE.colour], paths[LOOKS[0].colour]
    assert level[0, 1] == level[1, 1] == pytest.approx(line[1, 1])


def test_intervals_are_bars_at_their_points():
    spans = [(60.0, 90.0), None, (0.0, 6.0)]
    line = Line([(1, 80.0), (4, 10.0), (16, 5.0)], LOOKS[0], spans=spans)
    told = {"describe": "", "x_label": "x", "y_label": "y", "x_base": 2}
    svg = chart([line], key="k", **told)
    _, paths = drawn(svg)
    curve_of, first, last = paths[LOOKS[0].colour]
    assert first[0, 0] == first[1, 0] == pytest.approx(curve_of[0, 0])
    assert last[0, 0] == last[1, 0] == pytest.approx(curve_of[2, 0])
    unit = (curve_of[1, 1] - curve_of[0, 1]) / np.log(80 / 10)  # down the page for less
    assert first[0, 1] - first[1, 1] == pytest.approx(unit * np.log(90 / 60), rel=1e-4)
    assert last[0, 1] - last[1, 1] == pytest.approx(unit * np.log(6 / 2.5), rel=1e-4)  # cut off
    assert "inf" not in svg and "nan" not in svg


def test_the_front_is_a_staircase():
    points = [(1, 80.0), (4, 10.0), (16, 20.0)]
    svg = picture(points, x_base=2, front=points[:2])
    stairs = re.search(r'd="([^"]*)"[^>]*style="[^"]*stroke-width: 6[^"]*"', svg.replace("\n", " "))
    at = np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", stairs[1]), dtype=float)
    line = drawn(svg)[1][LOOKS[0].colour][0]
    a, b, c = line
    wanted = [a, (b[0], a[1]), b, (c[0], b[1])]
    assert np.allclose(at[:4], wanted, atol=1e-5) and (at[4:] == at[3]).all()
    assert "stroke-width: 6" not in picture(points, x_base=2)


def test_it_takes_the_colours_and_the_fonts_of_the_page():
    svg = picture([(1, 80.0), (4, 20.0)])
    assert "currentColor" in svg and "#010203" not in svg
    assert "font-family" not in svg and "<style" not in svg
    assert svg.startswith('<svg role="img" aria-label="a &#34;b&#34;" viewBox="')
    assert "http" not in svg and "<metadata" not in svg
    assert not re.search(r'\bid="(?!k-)', svg)
    assert svg == picture([(1, 80.0), (4, 20.0)])


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 2000), st.floats(-3, 3), st.floats(-3, 3))
def test_a_curve_keeps_its_mean_and_level(n, slope, level):
    points = [(float(i), level + slope * i / n) for i in range(n)]
    raw, smooth = curve(points, LOOKS[0])
    assert len(raw.points) == len(smooth.points) >= min(n, POINTS / 2 + 1)
    assert len(raw.points) <= POINTS
    assert raw.faint and not smooth.faint
    y, ends = np.array(smooth.points)[:, 1], (level, level + slope)
    assert min(ends) - 1e-9 <= y.min() and y.max() <= max(ends) + 1e-9
    reach = len(y) // 40
    inner = slice(reach, len(y) - reach - 1)  # a straight line is its own running mean there
    assert np.allclose(y[inner], np.array(raw.points)[inner, 1], atol=1e-9)


def test_smoothing_lessens_noise():
    noise = np.random.default_rng(0).normal(size=3000)
    raw, smooth = curve([(float(i), float(y)) for i, y in enumerate(noise)], LOOKS[0])
    width = 2 * (len(raw.points) // 40) + 1
    ratio = np.std([y for _, y in smooth.points]) / np.std([y for _, y in raw.points])
    assert ratio == pytest.approx(width**-0.5, rel=0.3)  # a mean of so many independent numbers
