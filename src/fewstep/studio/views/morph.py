"""Between two starts by a slider, or between four by a square; with the morph as an animation."""

from collections.abc import Sequence

import streamlit as st

from fewstep.studio import controls, pictures
from fewstep.studio.components import is_final, latest, mount
from fewstep.studio.session import Session, cost_text, download, file_stem, strip, view
from fewstep.studio.starts import Between, Start, shares_there_and_back
from fewstep.studio.views.compare import WIDTHS
from fewstep.studio.workshop import Model

FRAMES = 32
SMALL = 192
"""Width of a picture in pixels beside the square."""
STRIP = 9
"""Pictures of the strip from the first to the second start."""


@view
def show(session: Session) -> None:
    """Draw the view."""
    count = controls.control(
        "corners",
        st.segmented_control,
        "between",
        (2, 4),
        format_func=lambda number: {2: "two starts", 4: "four starts"}[number],
        required=True,
        help="the pinned starts of Seeds, filled up with seeds from the chosen one on",
    )
    starts = tuple(controls.current().corner_starts(count))
    name = f"morph {starts}"
    x, y = _position(name, count)
    if count == 2:
        slot, area = st.container(), st.container()
    else:
        slot, area = st.columns([1, 3])
    with area:
        columns = st.columns(min(len(session.models), 4))
    for index, model in enumerate(session.models):
        with columns[index % len(columns)]:
            _draw_model(session, model, Between(starts, x, y), WIDTHS[4] if count == 2 else SMALL)
    with slot:
        _mount(name, starts, x, y)
    if len(session.models[0].shape) == 3:
        _animation(session, starts)


def _position(name: str, count: int) -> tuple[float, float]:
    """Where the morph is; at rest, the position becomes part of the address."""
    state = controls.current()
    value = latest(name, state.x if count == 2 else (state.x, state.y))
    x, y = (value, state.y) if count == 2 else value
    x, y = (round(min(max(float(v), 0.0), 1.0), 3) for v in (x, y))
    if is_final(name) and (x, y) != (state.x, state.y):
        controls.change(x=x, y=y)
    return x, y


def _mount(name: str, starts: Sequence[Start], x: float, y: float) -> None:
    texts = [f"seed {start}" for start in starts]
    if len(starts) == 4:
        mount(name, "morphPad", {"corners": texts, "x": x, "y": y})
    else:
        options = {"label": "morph", "value": x, "left": texts[0], "right": texts[1]}
        mount(name, "range", options)


def _draw_model(session: Session, model: Model, place: Between, width: int) -> None:
    request = session.request(model, [place], controls.steps_of(model))
    result = session.generate(request)
    picture = pictures.show(result, width=width)
    st.markdown(controls.code(model.name))
    st.image(pictures.data_url(picture, pictures.metadata_of(request)))
    st.markdown(cost_text(request, result))
    download(request, picture, key=f"morph {model.name}")


def _animation(session: Session, starts: Sequence[Start]) -> None:
    """A strip from the first start to the second, and the morph of all starts as a file."""
    st.markdown("##### The way from one to the next")
    model = session.one_model()
    steps = controls.steps_of(model)
    shares = [number / (STRIP - 1) for number in range(STRIP)]
    places = [Between(tuple(starts[:2]), share) for share in shares]
    request = session.request(model, places, steps)
    images = session.generate(request).images
    strip([pictures.picture_of(image) for image in images], request)
    kind = st.segmented_control(
        "animation", ("GIF", "WebP"), default=None, key="animation", help="drawn when selected"
    )
    if kind:
        request = session.request(model, _tour(starts), steps)
        file = pictures.animation(session.generate(request).images, kind)
        st.image(file, width=256)
        st.download_button(
            kind,
            file,
            file_name=f"{file_stem(request)}.{kind.lower()}",
            mime=f"image/{kind.lower()}",
            icon=":material/download:",
            on_click="ignore",
        )


def _tour(starts: Sequence[Start]) -> list[Between]:
    """There and back between two starts; around the square through four."""
    if len(starts) == 2:
        return [Between(tuple(starts), share) for share in shares_there_and_back(FRAMES)]
    round_trip = [starts[i] for i in (0, 1, 3, 2)]
    legs = zip(round_trip, [*round_trip[1:], round_trip[0]], strict=True)
    shares = [number / (FRAMES // 4) for number in range(FRAMES // 4)]
    return [Between((a, b), share) for a, b in legs for share in shares]
