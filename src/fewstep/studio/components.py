"""Widgets that report while they are dragged: JavaScript in the page.

A widget sends one value at a time, and the newest one after the page has answered: `mount` comes
after the pictures that depend on its value, so that its echo means that they are there.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import streamlit as st
from streamlit.components.v2 import component

from fewstep.studio import controls


def latest(name: str, default: Any) -> Any:
    """The value that the widget `name` reported last; `default` before it reports one."""
    report = _report(name)
    return default if report is None else report["value"]


def is_final(name: str) -> bool:
    """Whether the widget is at rest after its last report: no drag is going on."""
    report = _report(name)
    return report is not None and bool(report["final"])


def mount(name: str, widget: str, options: Mapping[str, Any]) -> None:
    """Put a widget of component.js here, with its options."""
    report = _report(name)
    _component()(
        key=_key(name),
        data={
            "widget": widget,
            "options": dict(options),
            "echo": report["number"] if report else 0,
        },
        on_report_change=lambda: None,
    )


def _key(name: str) -> str:
    # another address, as by the back button, starts every widget anew
    return f"widget {controls.epoch()} {name}"


def _report(name: str) -> Any:
    state = st.session_state.get(_key(name))
    return state.get("report") if state else None


@cache
def _component() -> Callable[..., Any]:
    here = files("fewstep.studio")
    return component(
        "fewstep-widget",
        html='<div class="widget"></div>',
        css=here.joinpath("component.css").read_text(),
        js=here.joinpath("component.js").read_text(),
    )
