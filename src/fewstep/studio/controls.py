"""Controls that read and write the page's state, and the state in the page's address."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import streamlit as st

from fewstep.condition import NO_LABEL
from fewstep.formatting import quantity
from fewstep.studio.state import (
    IN_TURN,
    MAX_GUIDANCE,
    MAX_PROMPT,
    NO_CLASS,
    State,
    from_query,
    to_query,
)
from fewstep.studio.workshop import Model

Value = TypeVar("Value")
_PREFIX = "control "
STEP_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MAX_PILLS = 12
MAX_WORDS = 20
"""Number of unknown words that are listed."""


def current() -> State:
    """The state of this tab."""
    return st.session_state["state"]


def change(**changes: Any) -> None:
    """Change fields of the state. Controls that are not rendered yet then show the new values."""
    st.session_state.update(state=replace(current(), **changes), acted=True)
    for field in changes:
        st.session_state.pop(_PREFIX + field, None)


def read_address() -> list[str]:
    """Take the state from the page's address, if a visitor changed that.

    Returns the problems with it.
    """
    query = {name: st.query_params.get_all(name) for name in st.query_params}
    if "state" in st.session_state and (query == st.session_state["query"] or _visitor_acted()):
        return []
    state, problems = from_query(query)
    st.session_state.update(
        state=state,
        query=query,
        published=to_query(state),
        epoch=epoch() + 1,
        acted=False,
        values={},
    )
    for key in [str(key) for key in st.session_state if str(key).startswith(_PREFIX)]:
        del st.session_state[key]
    return problems


def _visitor_acted() -> bool:
    """Whether this run follows a control. Its address may then be that before the last run.

    A quick second click leaves the browser before the address that the first one led to arrives
    there: that address must not undo the first click, as the browser's back button would.
    """
    values: dict[str, Any] = st.session_state["values"]
    moved = (
        key in st.session_state and st.session_state[key] != value for key, value in values.items()
    )
    return st.session_state["acted"] or any(moved)


def epoch() -> int:
    """How often the state was taken from the address: widgets in the browser start anew then."""
    return st.session_state.get("epoch", 0)


def write_address() -> None:
    """Put the state into the page's address; the browser's back button undoes the change."""
    query = to_query(current())
    st.session_state["acted"] = False
    if query != st.session_state["published"]:
        st.query_params.from_dict(query)
        st.session_state.update(query=query, published=query)


def cancel() -> None:
    """Abandon this run of the page if a newer one waits: Streamlit raises its own exception."""
    st.session_state.get("state")


def control(
    field: str, widget: Callable[..., Value], *args: Any, initial: Any = None, **options: Any
) -> Value:
    """A widget of Streamlit for a field of the state. Returns the field's new value.

    `initial` replaces the state's value where that cannot be shown.
    """
    key = _PREFIX + field
    initial = getattr(current(), field) if initial is None else initial
    if key not in st.session_state:
        st.session_state[key] = initial
    value = widget(*args, key=key, **options)
    st.session_state["values"][key] = st.session_state[key]
    if value != initial:
        st.session_state["state"] = replace(current(), **{field: value})
    return value


def choice(field: str, label: str, options: Sequence[str], **settings: Any) -> str:
    """A box that selects one of `options`, the first by default. The options are plain text."""
    value = getattr(current(), field)
    initial = value if value in options else options[0]
    if st.session_state.get(_PREFIX + field, initial) not in options:
        del st.session_state[_PREFIX + field]
    return control(field, st.selectbox, label, options, initial=initial, **settings)


def plain(text: str) -> str:
    """Text for a place that takes Markdown, in which it means nothing but itself."""
    return re.sub(r"([^\w\s]|_)", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """A name as Markdown code: monospaced, and shown as it is."""
    text = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"


def steps_of(model: Model) -> int:
    """Step count of a model, selection in another view or by default."""
    steps = current().steps_of(model.name, model.default_steps)
    return model.generator.nearest(steps, quietly=True)


def steps_control(model: Model) -> int:
    """Step count of a model: those it was trained for, or any."""
    counts = model.generator.grid.counts
    value = steps_of(model)
    options = sorted(counts) if counts else sorted({*STEP_COUNTS, value})
    if len(options) == 1:
        st.caption(f"trained for {quantity(value, 'step')} only")
        return value
    key = f"{_PREFIX}steps {model.name}"
    if key not in st.session_state:
        st.session_state[key] = value
    steps: int = cast(Any, st.select_slider("steps", options, key=key))
    st.session_state["values"][key] = steps
    if steps != value:
        others = [entry for entry in current().steps if entry.partition("@")[2] != model.name]
        entry = [] if steps == model.default_steps else [f"{steps}@{model.name}"]
        st.session_state["state"] = replace(current(), steps=(*others, *entry))
    return steps


def condition_control(model: Model) -> int | None:
    """What to generate: a class number, −1 for no class, or None for classes in turn."""
    names = model.class_names()
    if not names:
        return None
    options = [IN_TURN, *map(str, range(len(names)))]
    if not model.why_not_guidable:
        options.append(NO_CLASS)  # trained without labels too
    initial = current().label if current().label in options else IN_TURN
    if st.session_state.get(f"{_PREFIX}label", initial) not in options:
        del st.session_state[f"{_PREFIX}label"]
    if len(options) <= MAX_PILLS + 2:
        label = control(
            "label",
            st.segmented_control,
            "class",
            options,
            initial=initial,
            format_func=lambda option: plain(_label_text(option, names)),
            required=True,
        )
    else:
        label = control(
            "label",
            st.selectbox,
            "class",
            options,
            initial=initial,
            format_func=lambda option: _label_text(option, names),
        )
    if label == IN_TURN:
        return None
    return NO_LABEL if label == NO_CLASS else int(str(label))


def _label_text(option: str, names: Sequence[str]) -> str:
    if option in (IN_TURN, NO_CLASS):
        return {IN_TURN: "all in turn", NO_CLASS: "no class"}[option]
    return names[int(option)]


def prompt_control(model: Model) -> str:
    """What to draw, in words; empty for a model without text, or its examples in turn."""
    if not model.reads_text:
        return ""
    examples = [prompt for prompt in model.generator.spec.prompts if prompt]
    text = f", such as “{' '.join(examples[0].split())}”" if examples else ""
    return control(
        "prompt",
        st.text_input,
        "prompt",
        max_chars=MAX_PROMPT,
        placeholder=f"empty: captions in turn{text}",
    )


def negative_control(models: Sequence[Model], guidance: float) -> str:
    """The negative prompt; empty for models without text, or without guidance."""
    if guidance == 1 or not models[0].reads_text:
        return ""
    return control("negative", st.text_input, "negative prompt", max_chars=MAX_PROMPT)


def unknown_words(models: Sequence[Model], text: str) -> None:
    """Say for each model which words of the prompts it does not know, once where all agree."""
    words = {model.name: model.unknown_words(text) for model in models}
    texts = {name: ", ".join(map(plain, unknown[:MAX_WORDS])) for name, unknown in words.items()}
    if len(set(texts.values())) == 1:
        texts = {"": next(iter(texts.values()))}
    for name, unknown in texts.items():
        if unknown:
            st.caption(f"unknown words{f' of {code(name)}' if name else ''}: {unknown}")


def guidance_control(models: Sequence[Model]) -> float:
    """Weight of classifier-free guidance; for models that were not trained for it, the reason."""
    able = [model for model in models if not model.why_not_guidable]
    if not able or not models[0].generator.spec.is_conditional:
        return 1.0
    weight = control("guidance", st.slider, "guidance", 0.0, MAX_GUIDANCE, step=0.25)
    for model in models:
        if model.why_not_guidable and weight != 1:
            st.caption(f"{code(model.name)} has no guidance: {plain(model.why_not_guidable)}")
    return weight
