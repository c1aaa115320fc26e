"""How the generators came to be, as HTML: losses, scores on the way, recipes and commands."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from fewstep.report.exhibits import Entry
from fewstep.report.plots import LOOKS, Line, chart, curve, figure, mark
from fewstep.report.wording import count, duration
from fewstep.runs import weights_hash


def training(entries: Sequence[Entry]) -> str:
    """The curves of each that has a log."""
    figures = "".join(
        _losses(entry, key=f"loss-{i}") + _course(entry, key=f"course-{i}")
        for i, entry in enumerate(entries)
    )
    return f'<div class="charts">\n{figures}</div>\n' if figures else ""


def seconds(progress: Iterable[Mapping[str, Any]]) -> float:
    """How long it trained; the clock starts anew at each start, which newer logs also name."""
    whole, last = 0.0, 0.0
    for line in progress:
        now = 0.0 if "hardware" in line else line.get("seconds", last)
        if now < last:
            whole += last
        last = now
    return whole + last


def trained(progress: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines that tell of training steps, not of scores or of starts."""
    return [line for line in progress if "images" in line]


def _losses(entry: Entry, *, key: str) -> str:
    lines = trained(entry.exhibit.progress)
    names = dict.fromkeys(name for line in lines for name in line if name.endswith("/loss"))
    if not names:
        return ""
    looks = [entry.who.look, *(look for look in LOOKS if look != entry.who.look)]
    drawn: list[Line] = []
    legend: list[str] = []
    for name, look in zip(names, looks, strict=False):
        points = [(line["step"], line[name]) for line in lines if name in line]
        drawn += curve(points, look)
        legend.append(f"{mark(look)} {escape(name.removesuffix('/loss'))}")
    cost = f"{lines[-1]['images']:,} images in {duration(seconds(entry.exhibit.progress))}"
    caption = f"{escape(entry.exhibit.name)} <small>{cost}</small>"
    what = f"Training loss of {entry.exhibit.name} against steps"
    picture = chart(drawn, key=key, describe=what, x_label="step", y_label="loss")
    return figure(caption, picture, legend if len(legend) > 1 else ())


def _course(entry: Entry, *, key: str) -> str:
    """The scores taken on the way, a line for each step count; maybe nothing."""
    taken: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
    for line in entry.exhibit.progress:
        if "score" in line:
            taken.setdefault(line["score"]["steps"], []).append((line["step"], line["score"]))
    if not taken:
        return ""
    looks = dict(zip(taken, LOOKS * len(taken), strict=False))
    lines = [
        Line(
            [(float(step), score["frechet"]) for step, score in scores],
            looks[steps],
            spans=[(s.get("frechet_low"), s.get("frechet_high")) for _, s in scores],
        )
        for steps, scores in taken.items()
    ]
    name = entry.exhibit.name
    picture = chart(
        lines,
        key=key,
        describe=f"Fréchet distance of {name} in the course of training",
        x_label="step",
        y_label="Fréchet distance",
    )
    legend = [f"{mark(looks[steps])} {count(steps, 'step')}" for steps in taken]
    return figure(f"{escape(name)} <small>measured in training</small>", picture, legend)


def recipes(entries: Sequence[Entry]) -> str:
    """All that makes each of them again, folded away."""
    return "".join(map(_recipe, entries))


def _recipe(entry: Entry) -> str:
    exhibit = entry.exhibit
    parts = {
        "Commands": ("command", "\n".join(exhibit.commands)),
        "Recipe": ("recipe", exhibit.recipe.toml() if exhibit.recipe else ""),
        "Generator": ("generator", json.dumps(exhibit.generator.describe(), indent=2)),
        "Weights and description, SHA-256": ("hash", weights_hash(exhibit.generator)),
    }
    inside = "\n".join(
        f'<h3>{name}</h3>\n<pre class="{kind}" tabindex="0">{escape(text.rstrip())}</pre>'
        for name, (kind, text) in parts.items()
        if text
    )
    return f"<details>\n<summary>{entry.who.label}</summary>\n<div>{inside}</div>\n</details>\n"
