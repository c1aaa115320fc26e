"""Sections of a report in words and tables: scores, training costs and published scores."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from fewstep.evaluation import count_parameters
from fewstep.formatting import listing, quantity
from fewstep.generator import Generator
from fewstep.metrics import computed_measures
from fewstep.recipe import Recipe
from fewstep.report.exhibits import StyledExhibit, training_lines, training_seconds
from fewstep.report.ranking import Ranking, Row, best, fastest
from fewstep.report.rendering import render


def summary(ranking: Ranking) -> Markup:
    """Paragraphs that compare the fastest and the best student with the baseline.

    Without students, they describe the rows of the baseline.
    """
    rows = ranking.students or ranking.rows
    first, top = fastest(rows), best(rows)
    assert first and top
    # equally fast rows of other students that do not differ from the fastest one
    peers = [row for row in first.rivals(rows) if row.entry is not first.entry]
    peers = [row for row in peers if row.score.evaluations == first.score.evaluations]
    rivals = [
        f"{row.entry.exhibit.name} with {quantity(row.score.evaluations, 'evaluation')}"
        for row in top.rivals(rows)
    ]
    return render(
        "summary.html.j2",
        first=first,
        goal=ranking.goal if ranking.students else None,
        quick=fastest(ranking.baseline),
        peers=listing([row.entry.exhibit.name for row in [first, *peers]] if peers else []),
        top=None if top is first else top,
        rivals=listing(rivals),
    )


def tiles(ranking: Ranking) -> Markup:
    """Boxes with the main numbers of the fastest student; empty without a student or a baseline."""
    first, goal = fastest(ranking.students), ranking.goal
    return render("tiles.html.j2", first=first, goal=goal) if first and goal else Markup()


def scores(ranking: Ranking, *, key: str) -> Markup:
    """A table of distance and cost per image for all rows, with the caveats above it."""
    rows = [row.score for row in ranking.rows]
    return render(
        "scores.html.j2",
        key=key,
        ranking=ranking,
        seeds={score.seed for score in rows},
        number_formats=sorted({score.number_format for score in rows}),
        accuracies=any(score.accuracy is not None for score in rows),
        intervals=any(row.interval for row in ranking.rows),
    )


def other_measures(ranking: Ranking, *, key: str) -> Markup:
    """A table of the measures that `scores` does not show, and their meanings; empty if there are
    none."""
    rows = [row.score.measures for row in ranking.rows]
    measures = [m for m in computed_measures(rows) if m.key not in ("frechet", "accuracy")]
    if not measures:
        return Markup()
    return render("other_measures.html.j2", key=key, ranking=ranking, measures=measures)


def likelihoods(entries: Sequence[StyledExhibit]) -> Markup:
    """A table of the likelihoods of real images; empty if none was measured."""
    rows = [(entry, score) for entry in entries for score in entry.exhibit.likelihoods]
    return render("likelihoods.html.j2", rows=rows) if rows else Markup()


class Cost(NamedTuple):
    """The cost of training a generator."""

    entry: StyledExhibit
    row: Row | None
    """Its row with the fewest network evaluations per image."""
    parameters: int
    megabytes: float
    log: Sequence[Mapping[str, Any]]
    """The logged training steps; see `training_lines`."""
    seconds: float
    memory: int
    """Peak memory in MiB; 0 if unknown."""
    hardware: Sequence[str]
    sources: Sequence[tuple[str, str]]
    """The runs and stores that training needs: kind and address."""


def costs(entries: Sequence[StyledExhibit], rankings: Sequence[Ranking]) -> Markup:
    """A table of each entry: size, training cost, and distance at the fewest evaluations."""
    ranking = rankings[0] if rankings else None
    return render(
        "costs.html.j2",
        distance=ranking.protocol.distance if ranking else "",
        costs=[_cost(entry, ranking) for entry in entries],
    )


def _cost(entry: StyledExhibit, ranking: Ranking | None) -> Cost:
    exhibit = entry.exhibit
    log = training_lines(exhibit.progress)
    return Cost(
        entry=entry,
        row=fastest(row for row in ranking.rows if row.entry is entry) if ranking else None,
        parameters=count_parameters(exhibit.generator),
        megabytes=weights_bytes(exhibit.generator) / 1e6,
        log=log,
        seconds=training_seconds(exhibit.progress),
        memory=max((line.get("memory", 0) for line in log), default=0),
        hardware=list(
            dict.fromkeys(line["hardware"] for line in exhibit.progress if "hardware" in line)
        ),
        sources=_sources(exhibit.recipe),
    )


def weights_bytes(generator: Generator) -> int:
    """Size of all tensors in bytes."""
    return sum(t.numel() * t.element_size() for t in generator.state_dict().values())


def _sources(recipe: Recipe | None) -> list[tuple[str, str]]:
    """(kind, address) of the runs and stores that must exist before training."""
    sources: list[tuple[str, str]] = []
    if recipe and recipe.teacher:
        sources.append(("teacher", recipe.teacher.load))
    if recipe and recipe.pairs:
        sources.append(("pairs", recipe.pairs.load))
    if recipe and recipe.student.init not in ("teacher", "scratch"):
        sources.append(("initial weights", recipe.student.init))
    return sources


def published_scores(entries: Sequence[StyledExhibit]) -> Markup:
    """A table of the published scores in the recipes, each once; empty if there are none."""
    recipes = [entry.exhibit.recipe for entry in entries]
    rows = dict.fromkeys(p for recipe in recipes if recipe for p in recipe.about.published)
    return render("published.html.j2", rows=list(rows)) if rows else Markup()
