"""An HTML report that compares generators: scores, images, training curves and recipes.

The page is one file: images are embedded, it loads nothing and runs no scripts. Equal inputs give
equal bytes on one machine.
"""

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
from markupsafe import Markup

from fewstep import __version__
from fewstep.comparison import Exhibit, make_exhibit
from fewstep.evaluation import Evaluator
from fewstep.files import atomic_write
from fewstep.loading import load_run
from fewstep.report import charts, pictures, results
from fewstep.report.exhibits import StyledExhibit, style_exhibits
from fewstep.report.ranking import Ranking, rank
from fewstep.report.rendering import render
from fewstep.run_folder import Run
from fewstep.runs import weights_hash
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

    With an evaluator, the report also shows the real images nearest to the samples.

    Raises InputError if the exhibits cannot be compared, see `exhibits.style_exhibits`.
    """
    entries = style_exhibits(exhibits)
    rankings = rank(entries)
    sections = {
        "Scores": _scores(rankings),
        "Same noise": pictures.same_noise(entries),
        "Samples": pictures.samples(entries),
        "Nearest training images": pictures.neighbours(entries, evaluator),
        "Likelihood": results.likelihoods(entries),
        "Cost": results.costs(entries, rankings),
        "Published scores": results.published_scores(entries),
        "Training": charts.training(entries),
        "Before and after": pictures.before_and_after(entries),
        "Recipes": _recipes(entries),
        "Provenance": _provenance(rankings),
    }
    html = render(
        "page.html.j2",
        title=title,
        summary=results.summary(rankings[0]) if rankings else "",
        notes=notes,
        tiles=results.tiles(rankings[0]) if rankings else "",
        sections={name: body for name, body in sections.items() if body},
    )
    with atomic_write(path) as file:
        file.write(html.encode("utf-8", "backslashreplace"))  # names of files may not be UTF-8


def report_run(folder: Path | str, command: str) -> None:
    """Write report.html into a run folder; `command` is the shell command that trained the run."""
    run = Run(folder)
    progress = run.progress()
    last = progress[-1]["step"] if progress else 0
    # the tables show scores of the final weights only; the charts also show earlier ones
    scores = [score_from(p["score"]) for p in progress if "score" in p and p["step"] == last]
    exhibit = make_exhibit(load_run(run.folder), scores, commands=[command])
    write_report(run.folder / "report.html", [exhibit], title=run.folder.name)


def _scores(rankings: Sequence[Ranking]) -> Markup:
    """A summary, table, charts and other measures for each protocol.

    The page shows the summary of the first protocol at its top, so here it is left out.
    """
    parts = [
        (
            results.summary(ranking) if i else "",
            results.scores(ranking, key=f"table-{i}"),
            charts.quality(ranking, key=f"quality-{i}") if len(ranking.rows) > 1 else "",
            results.other_measures(ranking, key=f"measures-{i}"),
        )
        for i, ranking in enumerate(rankings)
    ]
    return render("rankings.html.j2", parts=parts) if parts else Markup()


def _recipes(entries: Sequence[StyledExhibit]) -> Markup:
    """Commands, recipe, description and hash of each generator, to reproduce it."""
    generators = [entry.exhibit.generator for entry in entries]
    descriptions = [json.dumps(generator.describe(), indent=2) for generator in generators]
    hashes = [weights_hash(generator) for generator in generators]
    return render("recipes.html.j2", recipes=list(zip(entries, descriptions, hashes, strict=True)))


def _provenance(rankings: Sequence[Ranking]) -> Markup:
    return render(
        "provenance.html.j2",
        fewstep=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        rankings=rankings,
    )
