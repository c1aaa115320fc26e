"""The way of a many-step sampler: each state, and the image that the network sees in it."""

import streamlit as st

from fewstep.studio import controls, pictures, toys
from fewstep.studio.session import Session, cost_text, strip, view
from fewstep.studio.views.compare import seeds_from
from fewstep.studio.workshop import Request
from fewstep.trajectory import Trajectory

MAX_FRAMES = 16
"""States of the film; of more steps, every n-th."""


@view
def show(session: Session) -> None:
    """Draw the view."""
    model, steps = session.model_and_steps()
    is_toy = len(model.shape) != 3
    starts = seeds_from(controls.current().seed, toys.POINTS if is_toy else 1)
    request = session.request(model, starts, steps)
    st.markdown(cost_text(request, session.generate(request)))
    journey = session.travel(request)
    if is_toy:
        _draw_toy(journey, request)
    else:
        _draw_film(journey, request)


def _draw_film(journey: Trajectory, request: Request) -> None:
    last = len(journey.times)
    indices = [*range(0, last, -(-last // MAX_FRAMES)), last]
    states = pictures.film(
        [journey.states[i] for i in indices], [journey.scales[i] for i in indices]
    )
    captions = [*(f"t {journey.times[i]:.2f}" for i in indices[:-1]), "image"]
    st.markdown("##### x_t, from noise to the image")
    strip([pictures.picture_of(state) for state in states], request, captions)
    st.caption("each state divided by alpha + sigma of its time")
    if not journey.predictions:
        st.caption("this sampler has no image x0 on its way")
        return
    predictions = [journey.predictions[i] for i in indices[:-1]]
    images = pictures.film(predictions, [1.0] * len(predictions))
    st.markdown("##### x0, the image that the network predicts from each")
    strip([pictures.picture_of(image) for image in images], request, captions)


def _draw_toy(journey: Trajectory, request: Request) -> None:
    last = len(journey.times)
    index = st.slider("step", 0, last, last, key="path step")
    st.image(pictures.data_url(toys.jumps(journey, request, index)))
    if index == last:
        st.caption("the generated points (red), and the jumps of some (blue)")
        return
    st.caption(
        f"time {journey.times[index]:.3g}: points (red), the jumps of some (blue), and where the "
        "velocity drives points from here (grey)"
    )
