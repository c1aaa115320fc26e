"""The table of all measures of one protocol, as HTML, each measure explained."""

from html import escape

from fewstep.metrics import MEASURES, Measure
from fewstep.report.ranking import Ranking
from fewstep.report.tables import Cells, Group, Heading, facts, ranged, table
from fewstep.report.wording import count
from fewstep.scores import Score

OTHERS = [m for m in MEASURES if m.key not in ("frechet", "accuracy")]
"""The Fréchet distance and the accuracy are in the table of scores."""


def all_measures(ranking: Ranking, *, key: str) -> str:
    """The measures beside the Fréchet distance and the accuracy; empty if none was computed."""
    scores = [row.score for row in ranking.rows]
    columns = [m for m in OTHERS if any(m.text(score.measures) for score in scores)]
    if not columns:
        return ""
    names = {m: m.name(standard=ranking.protocol.standard) for m in columns}
    heads = [Heading(f"{names[m]}{m.arrow and '&nbsp;'}{m.arrow}") for m in columns]
    groups = [
        Group(
            who.label,
            [Cells([_steps(row.score), *(_cell(row.score, m) for m in columns)]) for row in own],
        )
        for who, own in ranking.by_contender.items()
    ]
    samples = count(ranking.protocol.samples, "sample")
    caption = f"Of the same {samples} as above; small, 95 % intervals."
    headings = [Heading("Generator"), Heading("Steps"), *heads]
    meanings = facts([(f"{names[m]} {m.arrow}".strip(), m.meaning) for m in columns])
    return (
        "<details>\n<summary>All measures</summary>\n"
        f"<div>{table(caption, headings, groups, key=key)}{meanings}</div>\n</details>\n"
    )


def _steps(score: Score) -> str:
    return f'{score.steps} <small class="below">{escape(score.sampler)}</small>'


def _cell(score: Score, measure: Measure) -> str:
    text = measure.text(score.measures)
    return "–" if text is None else ranged(text, *measure.interval(score.measures))
