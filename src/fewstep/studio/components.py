"""Widgets that report while they are dragged: the JavaScript of `fewstep.web` in the page.

A widget sends one value at a time, and the newest one after the page has answered: `mount` comes
after the pictures that depend on its value, so that its echo says that they are there.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from fewstep.studio import controls
from fewstep.web import bundle

Handler = Callable[[Mapping[str, Any]], object]
"""Called with a report of a widget: its `event`, `value`, `number`, `time`, and whether it is
`final`."""


def latest(name: str, default: Any) -> Any:
    """The value that the widget `name` reported last; `default` before it reports one."""
    report = _report(name)
    return default if report is None else report["value"]


def is_final(name: str) -> bool:
    """Whether the widget is at rest after its last report: no drag is going on."""
    report = _report(name)
    return report is not None and bool(report["final"])


def mount(
    name: str, widget: str, options: Mapping[str, Any], *, on_report: Handler = lambda report: None
) -> None:
    """Put a widget here: a function of widgets.js, or `range`, with its options.

    `on_report` is called with each report before the page is drawn again.
    """
    report = _report(name)
    _component()(
        key=_key(name),
        data={
            "widget": widget,
            "options": dict(options),
            "echo": report["number"] if report else 0,
        },
        on_report_change=lambda: _call_once(name, on_report),
    )


def _call_once(name: str, on_report: Handler) -> None:
    """Pass on a report, unless it was passed on before.

    Streamlit calls back twice if a click elsewhere interrupts the run that follows a report. A pin
    that is set twice would be no pin.
    """
    report, calls = _report(name), st.session_state.setdefault("reports", {})
    if calls.get(name) != report:
        calls[name] = report
        on_report(report)


def _key(name: str) -> str:
    # another address, as by the back button, starts every widget anew
    return f"widget {controls.epoch()} {name}"


def _report(name: str) -> Any:
    state = st.session_state.get(_key(name))
    return state.get("report") if state else None


@cache
def _component() -> Callable[..., Any]:
    web, here = files("fewstep.web"), files("fewstep.studio")
    return component(
        "fewstep-widget",
        html='<div class="widget"></div>',
        css=web.joinpath("widgets.css").read_text() + here.joinpath("component.css").read_text(),
        js=bundle("widgets.js") + here.joinpath("component.js").read_text(),
    )
