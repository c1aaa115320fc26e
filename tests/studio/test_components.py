"""Reports of widgets reach the page once."""

import streamlit as st

from fewstep.studio import components


def test_a_report_that_streamlit_repeats_is_passed_on_once(monkeypatch):
    state, calls = {}, []
    monkeypatch.setattr(st, "session_state", state)
    monkeypatch.setattr(components, "_report", lambda name: state["widget"])
    for report in (
        {"event": "onPin", "number": 1, "time": 5},
        {"event": "onPin", "number": 1, "time": 5},  # the same again
        {"event": "onPin", "number": 2, "time": 6},
        {"event": "onPin", "number": 1, "time": 7},  # the first of a new widget
    ):
        state["widget"] = report
        components._call_once("grid", lambda report: calls.append(report["time"]))
    assert calls == [5, 6, 7]
