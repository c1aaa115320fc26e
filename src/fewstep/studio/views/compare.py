"""Several models from the same seeds, side by side; a wipe and a difference map of any two."""

from collections.abc import Sequence

import streamlit as st

from fewstep.studio import controls, pictures, toys
from fewstep.studio.components import mount
from fewstep.studio.session import Session, cost_text, download, view
from fewstep.studio.starts import MAX_SEED, Start
from fewstep.studio.state import COUNTS
from fewstep.studio.workshop import Model, Request, Result

COLUMNS = 4
WIDTHS = {1: 480, 2: 352, 3: 352, 4: 264}
"""Width of a picture in pixels, by the number of columns."""
Drawing = tuple[Request, Result]


@view
def show(session: Session) -> None:
    """Draw the view."""
    count = controls.control(
        "count", st.segmented_control, "pictures of each run", COUNTS, required=True
    )
    places = seeds_from(controls.current().seed, count)
    columns = min(len(session.models), COLUMNS)
    drawings: list[Drawing] = []
    for first in range(0, len(session.models), columns):
        for column, model in zip(
            st.columns(columns), session.models[first : first + columns], strict=False
        ):
            with column:
                drawings.append(_draw_model(session, model, places, WIDTHS[columns]))
    if len(drawings) > 1 and len(session.models[0].shape) == 3:
        _compare_two(drawings)


def seeds_from(seed: int, count: int) -> list[Start]:
    """The starts of `count` seeds from `seed` on."""
    return [Start(number % (MAX_SEED + 1)) for number in range(seed, seed + count)]


def _draw_model(session: Session, model: Model, places: Sequence[Start], width: int) -> Drawing:
    st.markdown(controls.code(model.name))
    slot = st.container()
    steps = controls.steps_control(model)
    if len(model.shape) != 3:
        places = seeds_from(places[0].seed, toys.POINTS)
    request = session.request(model, places, steps)
    result = session.generate(request)
    picture = pictures.show(result, width=width)
    with slot:
        st.image(pictures.data_url(picture, pictures.metadata_of(request)))
        st.markdown(cost_text(request, result))
    download(request, picture, key=f"compare {model.name}")
    return request, result


def _compare_two(drawings: Sequence[Drawing]) -> None:
    names = [request.model.name for request, _ in drawings]
    st.markdown("##### Any two, in one place")
    boxes = st.columns(2)
    with boxes[0]:
        left = controls.choice("left", "left", names)
    with boxes[1]:
        right = controls.choice("right", "right", [name for name in names if name != left])
    wipe, change = st.columns(2)
    (a, b) = (drawings[names.index(name)][1] for name in (left, right))
    with wipe:
        sheets = [pictures.sheet(result.images, width=384) for result in (a, b)]
        addresses = dict(zip(("left", "right"), map(pictures.data_url, sheets), strict=True))
        mount("wipe", "wipe", {**addresses, "names": [left, right]})
    with change:
        picture, text = pictures.difference(a.images, b.images, width=384)
        st.image(pictures.data_url(picture))
        st.markdown(text)
        st.caption("red where the right one is brighter, blue where it is darker; one fixed scale")
