"""A training while it runs: curves, the newest sample grid, and the time that is left."""

import pandas
import streamlit as st
from PIL import Image

from fewstep.errors import InputError
from fewstep.formatting import duration, number
from fewstep.run_folder import Run
from fewstep.studio import controls
from fewstep.studio.session import Session, view
from fewstep.studio.training import TrainingView, view_training

REFRESH = 2.0
"""Seconds between two looks at the log."""


@view
def show(session: Session) -> None:
    """Draw the view."""
    entries = session.workshop.catalogue.entries("run")
    names = [entry.name for entry in entries if entry.run]
    if not names:
        raise InputError("there are no run folders here: give one to fewstep studio")
    run = session.entry("run", names).run
    assert run is not None  # the names are those of folders
    refresh = None if view_training(run).finished else REFRESH
    st.fragment(_follow, run_every=refresh)(run)


def _follow(run: Run) -> None:
    state = view_training(run)
    _draw_progress(state)
    curves, pictures = st.columns([3, 2])
    with curves:
        _draw_curves(state)
    with pictures:
        _draw_newest_grid(run)


def _draw_newest_grid(run: Run) -> None:
    for file in reversed(run.grids()):
        try:
            with Image.open(file) as picture:
                picture.load()
        except OSError:
            continue  # it is being written
        st.image(picture)
        step = file.stem.removeprefix("step-")
        st.caption(f"samples at step {int(step):,}" if step.isdecimal() else "samples")
        return


def _draw_progress(training: TrainingView) -> None:
    if training.total:
        st.progress(min(max(training.step / training.total, 0.0), 1.0))
    cells = st.columns(3)
    total = f" of {training.total:,}" if training.total else ""
    cells[0].metric("step", f"{training.step:,}{total}")
    left = "finished" if training.finished else "–"
    if training.seconds_left is not None:
        left = duration(training.seconds_left)
    cells[1].metric("time left", left)
    rate = training.steps_per_second
    cells[2].metric("steps/s", number(rate) if rate else "–")


def _draw_curves(training: TrainingView) -> None:
    names = sorted(training.curves, key=lambda name: ("loss" not in name, name))
    if not names:
        st.info("The log has no numbers yet.")
        return
    selection = st.multiselect("curves", names, default=names[:2], key="curves", max_selections=6)
    for name in selection:
        curve = training.curves[name]
        frame = pandas.DataFrame({"step": list(curve), "value": list(curve.values())})
        st.caption(controls.plain(name))
        st.line_chart(frame, x="step", y="value", height=200)
