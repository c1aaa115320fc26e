"""A grid of seeds to pick from, pinned ones, and the neighbours of one."""

import streamlit as st

from fewstep.studio import controls, pictures
from fewstep.studio.pins import pin, pinned_row, start_grid
from fewstep.studio.session import Session, cost_text, download, view
from fewstep.studio.starts import Start, neighbours
from fewstep.studio.state import MIN_NEAR
from fewstep.studio.views.compare import seeds_from

GRID = 40
NEIGHBOURS = 8


@view
def show(session: Session) -> None:
    """Draw the view."""
    model, steps = session.model_and_steps()
    pinned_row(session, model, steps)
    seeds, around = st.columns([3, 2])
    with seeds:
        st.markdown("##### Pick a seed")
        start_grid(session, model, steps, seeds_from(controls.current().seed, GRID), name="seeds")
    with around:
        start = controls.current().selected_start()
        st.markdown(f"##### Around {_short(start)}")
        request = session.request(model, [start], steps)
        result = session.generate(request)
        picture = pictures.show(result, width=256)
        st.image(pictures.data_url(picture, pictures.metadata_of(request)))
        st.markdown(cost_text(request, result))
        with st.container(horizontal=True):
            label = "Unpin" if str(start) in controls.current().pins else "Pin"
            st.button(label, icon=":material/keep:", key="pin", on_click=pin, args=(start,))
            download(request, picture, key="start")
        share = controls.control("near", st.slider, "distance", MIN_NEAR, 1.0, step=0.02)
        start_grid(session, model, steps, neighbours(start, NEIGHBOURS, share), name="near")


def _short(start: Start) -> str:
    turns = len(start.turns)
    return f"seed {start.seed}" + (f", {turns} turns on" if turns else "")
