"""Grids of starts to pick from, and the pinned ones."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from fewstep.studio import controls, pictures
from fewstep.studio.session import Session
from fewstep.studio.starts import Start
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
    session: Session,
    model: Model,
    steps: int,
    starts: Sequence[Start],
    *,
    key: str,
    columns: int = 6,
) -> None:
    """A picture of each start with its seed; a click picks it."""
    images = session.generate(session.request(model, starts, steps)).images
    for first in range(0, len(starts), columns):
        last = min(first + columns, len(starts))
        for column, index in zip(st.columns(columns), range(first, last), strict=False):
            with column:
                _cell(starts[index], images[index], key)


def _cell(start: Start, image: Any, key: str) -> None:
    st.image(pictures.png(pictures.enlarge(pictures.picture_of(image), width=64)))
    st.button(str(start.seed), key=f"{key} {start}", on_click=pick, args=(start,))


def pinned_row(session: Session, model: Model, steps: int) -> None:
    """The pinned starts."""
    starts = controls.current().pinned()
    if starts:
        st.caption("pinned: the corners of Morph; a click shows one's neighbours")
        start_grid(session, model, steps, starts, key="pins", columns=MAX_PINS)
