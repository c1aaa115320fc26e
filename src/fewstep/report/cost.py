"""What the generators cost to train, and published figures of others, as HTML tables."""

from collections.abc import Sequence
from html import escape

from fewstep.evaluation import count_parameters
from fewstep.generator import Generator
from fewstep.recipe import PublishedScore, Recipe
from fewstep.report.exhibits import Entry
from fewstep.report.ranking import Ranking, quickest
from fewstep.report.tables import Cells, Group, Heading, ranged, table, wrapped
from fewstep.report.training import seconds, trained
from fewstep.report.wording import count, duration, number


def costs(entries: Sequence[Entry], rankings: Sequence[Ranking]) -> str:
    """A row an exhibit: its size, its training, and what that came to at its quickest."""
    first = rankings[0] if rankings else None
    rests = any(_rests(entry.exhibit.recipe) for entry in entries)
    headings = [Heading("Generator")]
    if first:
        headings.append(Heading(f"{escape(first.protocol.distance)} at its quickest&nbsp;↓"))
    columns = ("Parameters", "Images seen", "Training time", "Peak memory")
    headings += [Heading(text) for text in columns]
    headings += [Heading("Trained on", words=True)]
    headings += [Heading("Rests on", words=True)] if rests else []
    groups = [Group(e.who.label, [Cells(_cost(e, first, rests=rests))]) for e in entries]
    told = (
        "Training time is the wall clock of its own training, scores taken meanwhile included."
        " Peak memory is that of the tensors on a GPU, else that of the whole process."
    )
    if rests:
        told += (
            " A student’s row is not the whole of its cost: what it rests on had to be made before."
        )
    return table(told, headings, groups, key="cost")


def _cost(entry: Entry, ranking: Ranking | None, *, rests: bool) -> list[str]:
    exhibit = entry.exhibit
    lines = trained(exhibit.progress)
    clock = seconds(exhibit.progress)
    memory = max((line.get("memory", 0) for line in lines), default=0)
    megabytes = weights_bytes(exhibit.generator) / 1e6
    machines = dict.fromkeys(line["hardware"] for line in exhibit.progress if "hardware" in line)
    cells = [_reached(entry, ranking)] if ranking else []
    cells += [
        f"{count_parameters(exhibit.generator):,}{_small(f'{number(megabytes)} MB')}",
        f"{lines[-1]['images']:,}{_small(count(lines[-1]['step'], 'step'))}" if lines else "–",
        duration(clock) if clock else "–",
        f"{memory:,} MiB" if memory else "–",
        wrapped("<br>".join(map(escape, machines))),
    ]
    if rests:
        cells.append(wrapped("<br>".join(_rests(exhibit.recipe))))
    return cells


def _small(text: str) -> str:
    """Beneath a figure."""
    return f' <small class="below">{text}</small>'


def weights_bytes(generator: Generator) -> int:
    """What its weights take, without the file around them."""
    return sum(t.numel() * t.element_size() for t in generator.state_dict().values())


def _reached(entry: Entry, ranking: Ranking) -> str:
    row = quickest(row for row in ranking.rows if row.who is entry.who)
    if row is None:
        return "–"
    told = row.score.measures
    value = ranged(number(told.frechet), told.frechet_low, told.frechet_high)
    return value + _small(count(row.score.evaluations, "evaluation"))


def _rests(recipe: Recipe | None) -> list[str]:
    """What had to be there before, in HTML."""
    if recipe is None:
        return []
    told: list[tuple[str, str]] = []
    if recipe.teacher:
        told.append(("teacher", recipe.teacher.load))
    if recipe.pairs:
        told.append(("pairs", recipe.pairs.load))
    if recipe.student.init not in ("teacher", "scratch"):
        told.append(("begun from", recipe.student.init))
    return [f"<small>{what}</small> {escape(where)}" for what, where in told]


def published(entries: Sequence[Entry]) -> str:
    """Figures of papers that the recipes name, each once and in their order; maybe nothing."""
    recipes = [entry.exhibit.recipe for entry in entries]
    figures = dict.fromkeys(p for recipe in recipes if recipe for p in recipe.about.published)
    if not figures:
        return ""
    headings = [Heading("Published"), Heading("Steps"), Heading("Score")]
    headings += [Heading(text, words=True) for text in ("Protocol", "Cost", "Source")]
    groups = [Group(escape(figure.name), [Cells(_figure(figure))]) for figure in figures]
    told = (
        "As their authors give them. They were measured by other protocols, so they are not ranked "
        "with the scores above: other samples, networks or reference images give other figures."
    )
    return table(told, headings, groups, key="published")


def _figure(told: PublishedScore) -> list[str]:
    words = [wrapped(escape(text)) for text in (told.protocol, told.cost, told.source)]
    # all digits that were published: rounding is theirs
    return [f"{told.steps:,}", f"{told.score:g}", *words]
