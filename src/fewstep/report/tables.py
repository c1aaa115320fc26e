"""Tables as HTML, alike all over the report: groups of rows, each under a heading to their left."""

from collections.abc import Sequence
from typing import NamedTuple

from fewstep.report.wording import interval


class Heading(NamedTuple):
    """Of a column, in HTML."""

    text: str
    words: bool = False
    """Whether the column holds words, not numbers."""


class Cells(NamedTuple):
    """A row behind its first cell, in HTML; `kind` is a class of the page's style."""

    texts: Sequence[str]
    kind: str = ""


class Group(NamedTuple):
    """Rows that share their first cell, in HTML."""

    head: str
    rows: Sequence[Cells]


def table(caption: str, headings: Sequence[Heading], groups: Sequence[Group], *, key: str) -> str:
    """A table under its caption, which scrolls in its own box where it is too wide."""
    head = "".join(f'<th scope="col"{_word(h)}>{h.text}</th>' for h in headings)
    bodies = "\n".join(_body(group, headings[1:]) for group in groups)
    return (
        f'<figure>\n<figcaption id="{key}-caption" class="soft">{caption}</figcaption>\n'
        f'<div class="scroll" role="region" aria-labelledby="{key}-caption" tabindex="0">\n'
        f'<table aria-labelledby="{key}-caption">\n<thead><tr>{head}</tr></thead>\n{bodies}\n'
        "</table>\n</div>\n</figure>\n"
    )


def _body(group: Group, headings: Sequence[Heading]) -> str:
    several = len(group.rows) > 1
    spans = f' scope="rowgroup" rowspan="{len(group.rows)}"' if several else ' scope="row"'
    rows = [
        f'<tr class="{cells.kind}">'
        + (f'<th{spans}><span class="who">{group.head}</span></th>' if i == 0 else "")
        + "".join(
            f"<td{_word(h)}>{text}</td>" for h, text in zip(headings, cells.texts, strict=True)
        )
        + "</tr>"
        for i, cells in enumerate(group.rows)
    ]
    return "<tbody>\n" + "\n".join(rows) + "\n</tbody>"


def _word(heading: Heading) -> str:
    return ' class="word"' if heading.words else ""


def ranged(value: str, low: float | None, high: float | None) -> str:
    """A figure above its interval, as HTML."""
    around = interval(low, high)
    return f'{value} <small class="below">{around}</small>' if around else value


def wrapped(text: str) -> str:
    """Words that a cell may break into several lines, as HTML; a dash where there are none."""
    return f'<span class="long">{text}</span>' if text else "–"


def facts(told: Sequence[tuple[str, str]]) -> str:
    """Names and what they are, both HTML."""
    inside = "\n".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in told)
    return f'<dl class="facts">\n{inside}\n</dl>\n'
