"""Strokes or a picture of one's own as the beginning of a sample, with some freedom."""

from typing import Any, cast

import streamlit as st
import torch
from torch import Tensor

from fewstep.images import to_uint8
from fewstep.studio import controls, pictures
from fewstep.studio.components import is_final, latest, mount
from fewstep.studio.session import Session, cost_text, download, view
from fewstep.studio.views.compare import WIDTHS, seeds_from
from fewstep.studio.workshop import Model

VARIANTS = 4
"""Pictures of each model, from different noise."""


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
    canvas, results = st.columns([2, 3])
    with canvas:
        image = _painting(able[0])
    freedom = _freedom()
    with results:
        columns = st.columns(min(len(able), 3))
        for index, model in enumerate(able):
            with columns[index % len(columns)]:
                _draw_model(session, model, image, freedom)
    with canvas:
        _mount(able[0], image, freedom)


def _painting(model: Model) -> Tensor:
    """The picture (1, c, h, w) in [-1, 1] to start from: uploaded, or that of the seed."""
    file = st.file_uploader("a picture", type=["png", "jpg", "jpeg", "webp", "gif", "bmp"])
    if file is None:
        return -torch.ones(1, *model.shape)
    return pictures.read_picture(file.getvalue(), cast(Any, model.shape))


def _freedom() -> float:
    state = controls.current()
    value = min(max(float(latest("freedom", state.freedom)), 0.02), 1.0)
    if is_final("freedom") and value != state.freedom:
        controls.change(freedom=value)
    return value


def _mount(model: Model, image: Tensor, freedom: float) -> None:
    st.image(pictures.png(pictures.sheet(to_uint8(image), width=256)))
    texts = {"left": "keep my picture", "right": "full freedom"}
    mount("freedom", "range", {"label": "freedom", "value": freedom, **texts})
    st.caption(f"freedom {freedom:.2f}: the noise level that the picture is brought to")


def _draw_model(session: Session, model: Model, image: Tensor, freedom: float) -> None:
    st.markdown(controls.code(model.name))
    steps = controls.steps_control(model)
    request = session.request(model, seeds_from(controls.current().seed, VARIANTS), steps)
    result = session.generate(request, image=image, freedom=freedom)
    picture = pictures.sheet(result.images, width=WIDTHS[4])
    st.image(pictures.png(picture, pictures.metadata_of(request)))
    st.markdown(cost_text(request, result))
    download(request, picture, key=f"paint {model.name}")
