"""One HTML file that shows generators side by side: scores, pictures, curves, how to make them.

It stands alone: pictures are inside, nothing is fetched, nothing runs. Equal inputs give equal
bytes on one machine.
"""

import platform
import string
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

import torch

from fewstep import __version__
from fewstep.comparison import Exhibit, load_run, make_exhibit
from fewstep.evaluation import Evaluator
from fewstep.report import cost, pictures, training
from fewstep.report.exhibits import entries
from fewstep.report.measures import all_measures
from fewstep.report.quality import plots
from fewstep.report.ranking import Ranking, rank
from fewstep.report.scoreboard import scores
from fewstep.report.summary import sentences, tiles
from fewstep.report.tables import facts
from fewstep.runs import Run
from fewstep.scores import score_from

__all__ = ["Exhibit", "report_run", "write_report"]


def write_report(
    path: Path,
    exhibits: Sequence[Exhibit],
    *,
    title: str,
    notes: Sequence[str] = (),
    evaluator: Evaluator | None = None,
) -> None:
    """Write the report of `exhibits`, in their order, to `path`.

    With a evaluator, samples are also shown beside the real images most like them.

    Raises: InputError where there is nothing to show, or the exhibits make different things.
    """
    shown = entries(exhibits)
    rankings = rank(entry.who for entry in shown)
    told = {
        "Scores": _scores(rankings),
        "Same noise": pictures.same_noise(shown),
        "Samples": pictures.samples(shown),
        "Nearest training images": pictures.neighbours(shown, evaluator),
        "Cost": cost.costs(shown, rankings),
        "Published figures": cost.published(shown),
        "Training": training.training(shown),
        "Before and after": pictures.before_and_after(shown),
        "Recipes": training.recipes(shown),
        "Provenance": _provenance(rankings),
    }
    sections = {name: body for name, body in told.items() if body}
    page = string.Template((resources.files("fewstep.report") / "page.html").read_text("utf-8"))
    html = page.substitute(
        title=escape(title),
        lede=_lede(rankings, notes),
        contents="\n".join(f'<a href="#{_id(name)}">{name}</a>' for name in sections),
        sections="\n".join(_section(name, body) for name, body in sections.items()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def report_run(folder: Path | str, command: str) -> None:
    """Write a run folder's own report.html; `command` is what trained it."""
    run = Run(folder)
    progress = run.progress()
    last = progress[-1]["step"] if progress else 0
    # scores of earlier weights are in the curves; these are of the saved weights
    scores = [score_from(p["score"]) for p in progress if "score" in p and p["step"] == last]
    exhibit = make_exhibit(load_run(run.folder), scores, commands=[command])
    write_report(run.folder / "report.html", [exhibit], title=run.folder.name)


def _id(name: str) -> str:
    return name.lower().replace(" ", "-")


def _section(name: str, body: str) -> str:
    key = _id(name)
    return (
        f'<section id="{key}" aria-labelledby="{key}-title">\n'
        f'<h2 id="{key}-title">{name}</h2>\n{body}</section>'
    )


def _lede(rankings: Sequence[Ranking], notes: Sequence[str]) -> str:
    told = ""
    if rankings:
        words = "\n".join(f"<p>{sentence}</p>" for sentence in sentences(rankings[0]))
        told = f'<div class="lede">\n{words}\n</div>\n'
    if notes:
        told += '<ul class="notes">' + "".join(f"<li>{escape(n)}</li>" for n in notes) + "</ul>\n"
    return told + (tiles(rankings[0]) if rankings else "")


def _scores(rankings: Sequence[Ranking]) -> str:
    told = ""
    if len(rankings) > 1:
        told = (
            "<p>These scores were taken in different ways (samples, extractor or reference set), "
            "so they are ranked apart: numbers of one table do not compare with another’s.</p>\n"
        )
    for i, ranking in enumerate(rankings):
        words = f"<p>{' '.join(sentences(ranking))}</p>\n" if i else ""
        table = scores(ranking, key=f"table-{i}")
        drawn = plots(ranking, key=f"quality-{i}") if len(ranking.rows) > 1 else ""
        more = all_measures(ranking, key=f"measures-{i}")
        told += f'<div class="ranking">\n{words}{table}{drawn}{more}</div>\n'
    return told


def _provenance(rankings: Sequence[Ranking]) -> str:
    told = [
        ("Written by", f"fewstep {__version__}, torch {torch.__version__}"),
        ("On", f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
    ]
    for ranking in rankings:
        about = ranking.protocol
        told += [
            (
                "Extractor",
                f"{about.extractor}, {about.features:,} features, {about.extractor_hash}",
            ),
            ("Resizing", about.resize),
            ("Reference", about.reference),
            ("Samples", f"{about.samples:,} for each score"),
            ("Timed on", "; ".join(ranking.devices)),
        ]
    return facts([(name, escape(text)) for name, text in told])
