"""The page: header, controls that all views share, and the view."""

import random
from collections.abc import Sequence
from importlib import import_module

import streamlit as st
from PIL import Image, ImageColor

from fewstep.errors import InputError
from fewstep.studio import controls
from fewstep.studio.catalogue import Catalogue
from fewstep.studio.session import Session, choose_names, load_models
from fewstep.studio.starts import MAX_SEED
from fewstep.studio.state import VIEWS
from fewstep.studio.workshop import Workshop

TITLES = {
    "compare": "Side by side",
    "seeds": "Seeds",
    "morph": "Morph",
    "paint": "Paint",
    "path": "Path",
    "training": "Training",
    "data": "Data",
    "report": "Report",
}
ICONS = {
    "compare": ":material/view_column:",
    "seeds": ":material/grid_view:",
    "morph": ":material/blur_on:",
    "paint": ":material/brush:",
    "path": ":material/theaters:",
    "training": ":material/show_chart:",
    "data": ":material/database:",
    "report": ":material/summarize:",
}
WITH_MODELS = ("compare", "seeds", "morph", "paint", "path")
STYLE = """<style>
[data-testid="stImage"] img { image-rendering: pixelated; border-radius: 0; }
.block-container { padding: 1.5rem 1rem 3rem; max-width: 1232px; }
</style>"""


@st.cache_resource(show_spinner=False)
def workshop_of(addresses: tuple[str, ...]) -> Workshop:
    """One workshop for all tabs, so that they share its generators and its turns."""
    return Workshop(Catalogue(addresses))


def show(addresses: Sequence[str]) -> None:
    """Draw the page for the runs in `addresses`."""
    st.set_page_config(page_title="fewstep studio", layout="wide", page_icon=_icon())
    st.html(STYLE)
    problems = controls.read_address()
    for problem in problems:
        st.error(controls.plain(problem))
    try:
        _show(workshop_of(tuple(addresses)))
    except InputError as error:
        st.error(controls.plain(str(error)))
    controls.write_address()


def _show(workshop: Workshop) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown("**fewstep** studio", width="content")
        view = controls.control(
            "view",
            st.segmented_control,
            "view",
            VIEWS,
            format_func=lambda name: f"{ICONS[name]} {TITLES[name]}",
            required=True,
            label_visibility="collapsed",
        )
    session = Session(workshop)
    if view in WITH_MODELS:
        session = _shared_controls(workshop)
        if not session.models:
            st.info("Choose a run. One that has no weights yet is shown by Training.")
            return
    import_module(f"fewstep.studio.views.{view}").show(session)


def _shared_controls(workshop: Workshop) -> Session:
    """Models, guidance, seed, class and prompt."""
    row = st.container(horizontal=True, vertical_alignment="bottom")
    with row:
        box = st.popover("Runs", icon=":material/deployed_code:", width="content")
    requested = controls.current().models
    with box:
        names = choose_names(workshop)
    models = load_models(workshop, names, requested)  # its errors are not hidden in the box
    if not models:
        return Session(workshop)
    with box:
        guidance = controls.guidance_control(models)
        negative = controls.negative_control(models, guidance)
    with row:
        with st.container(width=150):
            controls.control("seed", st.number_input, "seed", 0, MAX_SEED, step=1)
        st.button(
            "",
            icon=":material/casino:",
            help="another seed",
            key="another seed",
            on_click=lambda: controls.change(seed=random.randrange(10_000), start=""),
        )
        label = controls.condition_control(models[0])
        prompt = controls.prompt_control(models[0])
    controls.unknown_words(models, f"{prompt} {negative}")
    return Session(workshop, models, label, guidance, prompt, negative)


def _icon() -> Image.Image:
    """Four pixels, from noise to white. Streamlit would load a named icon from the internet."""
    icon = Image.new("RGB", (2, 2), "#ffffff")
    for position, colour in {(0, 0): "#c63a4a", (1, 0): "#1f1f28", (0, 1): "#e8a1a9"}.items():
        icon.putpixel(position, ImageColor.getrgb(colour))
    return icon.resize((32, 32), Image.Resampling.NEAREST)
