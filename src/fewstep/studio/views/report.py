"""The reports in the folders, and a new one that compares the chosen runs."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import streamlit as st

from fewstep.errors import InputError
from fewstep.studio import controls
from fewstep.studio.catalogue import Entry
from fewstep.studio.session import Session, view

HEIGHT = 900
STEPS = (1, 2, 4)
POLICY = (
    '<!doctype html><meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "img-src data:; style-src 'unsafe-inline'; form-action 'none'\">"
)
"""A report runs no scripts and loads nothing; a file that only calls itself one may not either."""
WHICH = ("in the folders", "new")


@view
def show(session: Session) -> None:
    """Draw the view."""
    names = [entry.name for entry in session.workshop.catalogue.entries("report")]
    which = st.segmented_control(
        "report",
        WHICH if names else WHICH[1:],
        key="which report",
        required=True,
        default=WHICH[0] if names else WHICH[1],
    )
    html = _read(session.entry("report", names)) if which == WHICH[0] else _compare(session)
    if html is None:
        return
    st.download_button(
        "HTML", html, "report.html", "text/html", icon=":material/download:", on_click="ignore"
    )
    st.iframe(POLICY + html, height=HEIGHT)


def _read(entry: Entry) -> str:
    try:
        return Path(entry.address).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{entry.name} cannot be read: {error}") from error


def _compare(session: Session) -> str | None:
    """Score the chosen runs by the quick protocol, at a click: that takes minutes."""
    catalogue = session.workshop.catalogue
    names = [entry.name for entry in catalogue.entries("run") if entry.has_weights]
    selection = st.multiselect("runs", names, key="report runs", max_selections=8)
    st.caption(
        "Scores 2,000 images of each run at 1, 2 and 4 steps, which takes minutes. Scores in a "
        "run's folder are used again."
    )
    if selection and st.button("Compare", icon=":material/leaderboard:"):
        addresses = [catalogue.find("run", name).address for name in selection]
        st.session_state["new report"] = _build(addresses)
    return st.session_state.get("new report")


def _build(addresses: list[str]) -> str:
    from fewstep.comparison import compare
    from fewstep.metrics import protocol
    from fewstep.report import write_report

    comparison = compare(addresses, protocol("quick"), STEPS, bar=_bar)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        write_report(
            path, comparison.exhibits, title=comparison.title, evaluator=comparison.evaluator
        )
        return path.read_text(encoding="utf-8")


@contextmanager
def _bar(description: str, total: int) -> Generator[Callable[[int], object]]:
    """A progress bar on the page; a newer run of the page abandons the work."""
    slot, text = st.empty(), controls.plain(description)
    yield lambda done: slot.progress(min(done / max(total, 1), 1.0), text)
    slot.empty()
