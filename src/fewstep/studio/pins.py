"""Grids of starts to pick from, and the pinned ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from fewstep.errors import InputError
from fewstep.studio import controls, pictures
from fewstep.studio.components import mount
from fewstep.studio.session import Session
from fewstep.studio.starts import Start, parse_start
from fewstep.studio.workshop import Model

MAX_PINS = 12


def pin(start: Start) -> None:
    """Pin a start, or remove it if it is pinned."""
    pins = [text for text in controls.current().pins if text != str(start)]
    if len(pins) == len(controls.current().pins):
        pins = [*pins, str(start)][-MAX_PINS:]
    controls.change(pins=tuple(pins))


def pick(start: Start) -> None:
    """Show the neighbours of a start."""
    controls.change(start=str(start))


def start_grid(
    session: Session, model: Model, steps: int, starts: Sequence[Start], *, name: str
) -> None:
    """A picture of each start: a click picks it, and its pin pins it."""
    result = session.generate(session.request(model, starts, steps))
    state = controls.current()
    options = {
        "images": [
            {"seed": str(start), "url": pictures.data_url(pictures.show_one(result, index))}
            for index, start in enumerate(starts)
        ],
        "selected": str(state.selected_start()),
        "pinned": list(state.pins),
    }
    mount(name, "seedGrid", options, on_report=_follow)


def _follow(report: Mapping[str, Any]) -> None:
    """Pick or pin the start that a grid reports."""
    try:
        start = parse_start(str(report["value"]))
    except InputError:
        return  # no grid of this page reports it
    (pin if report["event"] == "onPin" else pick)(start)


def pinned_row(session: Session, model: Model, steps: int) -> None:
    """The pinned starts."""
    starts = controls.current().pinned()
    if starts:
        st.caption("pinned: the corners of Morph")
        start_grid(session, model, steps, starts, name="pins")
