"""What the views work with: the chosen models, class and guidance, and generation with them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import streamlit as st
from PIL import Image

from fewstep.errors import InputError
from fewstep.formatting import duration, quantity
from fewstep.studio import controls
from fewstep.studio.catalogue import Entry, Kind
from fewstep.studio.journey import travel
from fewstep.studio.pictures import data_url, enlarge, metadata_of, png
from fewstep.studio.starts import Place
from fewstep.studio.state import MAX_MODELS
from fewstep.studio.workshop import Model, Request, Result, Workshop, labels_of, prompts_of
from fewstep.trajectory import Trajectory

MODELS_AT_FIRST = 4
STRIP_WIDTH = 96
"""Width in pixels that the pictures of a strip are enlarged to at most."""


@dataclass(frozen=True)
class Session:
    """The choices that all views share."""

    workshop: Workshop
    models: Sequence[Model] = ()
    """The chosen models, all of one shape; the first is the reference."""
    label: int | None = None
    """A class, −1 for none, or None for classes in turn."""
    guidance: float = 1.0
    prompt: str = ""
    """Empty for the example prompts of a model in turn."""
    negative: str = ""

    def request(self, model: Model, places: Sequence[Place], steps: int) -> Request:
        """Generate a picture at each of `places`, with the chosen class, prompt and guidance."""
        guidance = 1.0 if model.why_not_guidable else self.guidance
        labels = labels_of(model, places, self.label)
        prompts = prompts_of(model, places, self.prompt)
        negative = self.negative if prompts and guidance != 1 else ""
        return Request(model, tuple(places), labels, steps, guidance, prompts, negative)

    def entry(self, kind: Kind, names: Sequence[str]) -> Entry:
        """A box that selects one of `names` of the catalogue; the field is called like the kind."""
        value: str = getattr(controls.current(), kind)
        if value and value not in names:  # such as a path outside the folders, in the address
            _report_missing(self.workshop, value, kind)
        return self.workshop.catalogue.find(kind, controls.choice(kind, kind, names))

    def generate(self, request: Request, **options: Any) -> Result:
        """The images of a request; a newer run of the page abandons it."""
        return self.workshop.generate(request, cancel=controls.cancel, **options)

    def travel(self, request: Request) -> Trajectory:
        """The way of a request's sample; a newer run of the page abandons it."""
        with self.workshop.turn(controls.cancel):
            return travel(request)

    def one_model(self) -> Model:
        """A box that selects one of the models."""
        names = [model.name for model in self.models]
        if len(names) == 1:
            return self.models[0]
        return self.models[names.index(controls.choice("model", "model", names))]

    def model_and_steps(self) -> tuple[Model, int]:
        """Controls for one model and its step count, in a row."""
        if len(self.models) == 1:
            return self.models[0], controls.steps_control(self.models[0])
        boxes = st.columns(2)
        with boxes[0]:
            model = self.one_model()
        with boxes[1]:
            return model, controls.steps_control(model)


def choose_names(workshop: Workshop) -> tuple[str, ...]:
    """A box that selects runs with weights. Returns their names; problems are for `load_models`."""
    names = [entry.name for entry in workshop.catalogue.entries("run") if entry.has_weights]
    initial = tuple(name for name in controls.current().models if name in names)
    return controls.control(
        "models",
        _multiselect,
        "runs",
        names,
        initial=initial or _first_names(workshop, names),
        max_selections=MAX_MODELS,
    )


def load_models(workshop: Workshop, names: Sequence[str], requested: Sequence[str]) -> list[Model]:
    """The models with these names, as far as they are of the kind of the first one.

    Of each other one, and of each `requested` name that is no choice, a line says why.
    """
    for name in requested:
        if name not in names:  # such as a path outside the folders, in the page's address
            _report_missing(workshop, name)
    models: list[Model] = []
    for name in names:
        try:
            model = workshop.load(name, cancel=controls.cancel)
        except InputError as error:
            st.error(controls.plain(str(error)))
            continue
        if models and model.kind != models[0].kind:
            st.warning(
                f"{controls.code(name)} generates {_kind_text(model)}, "
                f"{controls.code(models[0].name)} {_kind_text(models[0])}: choose runs of one kind"
            )
            continue
        if models and (difference := models[0].class_difference(model)):
            names = f"{controls.code(models[0].name)} and {controls.code(name)}"
            st.warning(
                f"{names} have different classes: {controls.plain(difference)}. Choose runs of the "
                "same classes"
            )
            continue
        models.append(model)
    return models


def _report_missing(workshop: Workshop, name: str, kind: Kind = "run") -> None:
    try:
        entry = workshop.catalogue.find(kind, name)
        if entry.has_weights:
            return  # it was left out of the box by the visitor
        problem = f"{name} has no weights yet: train it until its first checkpoint"
    except InputError as error:
        problem = str(error)
    st.error(controls.plain(problem))


def _multiselect(label: str, options: Sequence[str], **settings: Any) -> tuple[str, ...]:
    key = settings["key"]
    st.session_state[key] = list(st.session_state[key])
    return tuple(st.multiselect(label, options, **settings))


def _first_names(workshop: Workshop, names: Sequence[str]) -> tuple[str, ...]:
    """The first runs that fit together, a teacher in front."""
    models: list[Model] = []
    for name in names[:MAX_MODELS]:
        try:
            model = workshop.load(name, cancel=controls.cancel)
        except InputError:
            continue  # the box shows its error once it is selected
        is_first = not models
        if is_first or (model.kind == models[0].kind and not models[0].class_difference(model)):
            models.append(model)
    models.sort(key=lambda model: -model.default_steps)
    return tuple([model.name for model in models] or names)[:MODELS_AT_FIRST]


def _kind_text(model: Model) -> str:
    shape, classes, reads_text = model.kind
    text = f"{'×'.join(map(str, shape))} with {classes} class" + "es" * (classes != 1)
    return f"{text} and prompts" if reads_text else text


def cost_text(request: Request, result: Result) -> str:
    """Steps, network calls and time of a result."""
    count, noun = len(result.values), "picture" if result.values.ndim == 4 else "point"
    images = "" if count == 1 else f" for {quantity(count, noun)}"
    calls = quantity(result.calls, "network call")
    return (
        f"**{quantity(request.steps, 'step')}** · {calls} · **{duration(result.seconds)}**{images}"
    )


def strip(images: Sequence[Image.Image], request: Request, captions: Sequence[str] = ()) -> None:
    """Small pictures next to each other, in as many rows as the page needs."""
    metadata = metadata_of(request)
    with st.container(horizontal=True, gap="small"):
        for index, image in enumerate(images):
            picture = enlarge(image, width=STRIP_WIDTH)
            caption = captions[index] if index < len(captions) else None
            st.image(data_url(picture, metadata), caption=caption, width=picture.width)


def download(request: Request, picture: Image.Image, *, key: str) -> None:
    """A button that downloads a picture with its origin in the file."""
    st.download_button(
        "PNG",
        png(picture, metadata_of(request)),
        file_name=f"{file_stem(request)}.png",
        mime="image/png",
        icon=":material/download:",
        key=f"download {key}",
        on_click="ignore",
    )


def file_stem(request: Request) -> str:
    """A file name without the characters that file systems refuse."""
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in request.model.name)
    return f"{name}-{request.starts[0].seed}-{request.steps}-steps"


def view(draw: Callable[[Session], None]) -> Callable[[Session], None]:
    """A view as a fragment: its own controls redraw nothing else. Errors are one line in it."""

    @st.fragment
    @wraps(draw)
    def show(session: Session) -> None:
        try:
            draw(session)
        except InputError as error:
            st.error(controls.plain(str(error)))
        controls.write_address()

    return show
