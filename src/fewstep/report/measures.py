"""All that was measured of one protocol's samples, as HTML, each measure explained."""

from collections.abc import Callable
from html import escape
from typing import NamedTuple

from fewstep.metrics import Measures
from fewstep.report.ranking import Ranking
from fewstep.report.tables import Cells, Group, Heading, facts, ranged, table
from fewstep.report.wording import count, number, percent
from fewstep.scores import Score


class _Measure(NamedTuple):
    name: str
    arrow: str
    """Which way is good."""
    meaning: str
    cell: Callable[[Measures], str | None]
    """None where it was not measured."""


def all_measures(ranking: Ranking, *, key: str) -> str:
    """Beside the distance: nothing where nothing else was measured."""
    rows = [row.score.measures for row in ranking.rows]
    shown = [m for m in _measures(ranking.protocol) if any(m.cell(row) is not None for row in rows)]
    if not shown:
        return ""
    heads = [Heading(f"{m.name}{m.arrow and '&nbsp;'}{m.arrow}") for m in shown]
    headings = [Heading("Generator"), Heading("Steps"), *heads]
    groups = [
        Group(
            who.label,
            [
                Cells([_steps(row.score), *(m.cell(row.score.measures) or "–" for m in shown)])
                for row in own
            ],
        )
        for who, own in ranking.by_contender.items()
    ]
    samples = count(ranking.protocol.samples, "sample")
    caption = f"Of the same {samples} as above; small, 95 % intervals."
    told = facts([(f"{m.name} {m.arrow}".strip(), m.meaning) for m in shown])
    return (
        "<details>\n<summary>All measures</summary>\n"
        f"<div>{table(caption, headings, groups, key=key)}{told}</div>\n</details>\n"
    )


def _steps(score: Score) -> str:
    return f'{score.steps} <small class="below">{escape(score.sampler)}</small>'


def _measures(about: Score) -> list[_Measure]:
    standard = about.distance.startswith("FID")
    distance = "FID" if standard else "Fréchet distance"
    return [
        _Measure(
            f"{distance} at infinite samples",
            "↓",
            "The distance extrapolated to infinitely many samples: few samples make it too high, "
            "and this is what is left without that. 0 for equal sets.",
            lambda m: _plain(m.frechet_infinite),
        ),
        _Measure(
            "KID" if standard else "Kernel distance",
            "↓",
            "Squared maximum mean discrepancy of the features with a cubic kernel; few samples do "
            "not raise it. About 0, even below, for equal sets.",
            lambda m: (
                None if m.kernel is None else ranged(number(m.kernel), m.kernel_low, m.kernel_high)
            ),
        ),
        _Measure(
            "Inception Score" if standard else "Class score",
            "↑",
            "Confidence times variety of the classes that the network sees; 1 to their number.",
            lambda m: _plain(m.class_score),
        ),
        *_shares(),
    ]


def _shares() -> list[_Measure]:
    return [
        _Measure(
            "Precision",
            "↑",
            "Share of the samples that lie among the real images; 0 to 1.",
            lambda m: _share(m.precision),
        ),
        _Measure(
            "Recall",
            "↑",
            "Share of the real images that lie among the samples; 0 to 1.",
            lambda m: _share(m.recall),
        ),
        _Measure(
            "Density",
            "↑",
            "How thickly real images surround the samples: 1 for equal sets; more than 1 means "
            "samples crowd where real images are dense.",
            lambda m: _share(m.density),
        ),
        _Measure(
            "Coverage",
            "↑",
            "Share of the real images with a sample beside them; 0 to 1.",
            lambda m: _share(m.coverage),
        ),
        _Measure(
            "Copies",
            "",
            "Share of the samples as near to a training image as 1 % of training images lie to "
            "another: about 1 % is what fresh images give, much more is memory.",
            lambda m: None if m.copies is None else percent(m.copies),
        ),
    ]


def _plain(value: float | None) -> str | None:
    return None if value is None else number(value)


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"
