"""Strokes or a picture of one's own as the beginning of a sample, with some freedom."""

import math

import streamlit as st
import torch
from torch import Tensor

from fewstep.images import from_uint8
from fewstep.studio import controls, pictures
from fewstep.studio.components import is_final, latest, mount
from fewstep.studio.session import Session, cost_text, download, view
from fewstep.studio.views.compare import WIDTHS, seeds_from
from fewstep.studio.workshop import Model

VARIANTS = 4
"""Pictures of each model, from different noise."""
LEAST_FREEDOM = 0.05


@view
def show(session: Session) -> None:
    """Draw the view."""
    able = [model for model in session.models if not model.why_not_paintable]
    for model in session.models:
        if model.why_not_paintable:
            reason = controls.plain(model.why_not_paintable)
            st.markdown(f":gray[{controls.code(model.name)} cannot start from a picture: {reason}]")
    if not able:
        st.info("Choose a teacher, or a run of consistency, scm or meanflow.")
        return
    if able[0].shape[0] not in (1, 3):
        st.info("The canvas is grey or coloured: it has no brush for these images.")
        return
    canvas, results = st.columns([2, 3])
    image, freedom = _painting(able[0]), _freedom()
    with results:
        columns = st.columns(min(len(able), 3))
    for index, model in enumerate(able):
        with columns[index % len(columns)]:
            _draw_model(session, model, image, freedom)
    with canvas:
        _mount(able[0], freedom)
        st.button(
            "Paint on the picture of this seed",
            icon=":material/image:",
            on_click=_paint_on_seed,
            args=(session, able[0]),
        )


def _painting(model: Model) -> Tensor:
    """The painted picture (1, c, h, w) in [-1, 1]."""
    values = latest(_name(), None)
    if values is None or len(values) != math.prod(model.shape):
        values = _background(model)
    pixels = torch.tensor(values, dtype=torch.float32).clamp(0, 255)
    return from_uint8(pixels).view(1, *model.shape)


def _background(model: Model) -> list[int]:
    """What the canvas starts with, as values from 0 to 255: black, or the picture of a seed."""
    picture = st.session_state.get("background")
    size = math.prod(model.shape)
    return picture if picture is not None and len(picture) == size else [0] * size


def _name() -> str:
    return f"canvas {st.session_state.get('canvas', 0)}"


def _freedom() -> float:
    state = controls.current()
    value = min(max(float(latest("freedom", state.freedom)), LEAST_FREEDOM), 1.0)
    if is_final("freedom") and value != state.freedom:
        controls.change(freedom=value)
    return value


def _mount(model: Model, freedom: float) -> None:
    channels, height, width = model.shape
    size = {"width": width, "height": height, "channels": channels}
    mount(_name(), "paint", {**size, "image": _background(model)})
    texts = {"left": "keep it", "right": "change it"}
    mount("freedom", "range", {"label": "freedom", "value": freedom, **texts})
    st.caption(f"freedom {freedom:.2f}: the noise level that your picture is brought to")


def _paint_on_seed(session: Session, model: Model) -> None:
    starts = seeds_from(controls.current().seed, 1)
    result = session.generate(session.request(model, starts, controls.steps_of(model)))
    st.session_state["background"] = result.images.flatten().tolist()
    st.session_state["canvas"] = st.session_state.get("canvas", 0) + 1  # a new canvas


def _draw_model(session: Session, model: Model, image: Tensor, freedom: float) -> None:
    st.markdown(controls.code(model.name))
    steps = controls.steps_control(model)
    request = session.request(model, seeds_from(controls.current().seed, VARIANTS), steps)
    result = session.generate(request, image=image, freedom=freedom)
    picture = pictures.sheet(result.images, width=WIDTHS[4])
    st.image(pictures.data_url(picture, pictures.metadata_of(request)))
    st.markdown(cost_text(request, result))
    download(request, picture, key=f"paint {model.name}")
