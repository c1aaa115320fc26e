"""What is shown: the generators with all that is known of them, and the ways to sample them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor

from fewstep.comparison import Exhibit
from fewstep.drawing import generate
from fewstep.errors import InputError
from fewstep.report.plots import BASELINE, LOOKS
from fewstep.report.ranking import Contender, best, quickest, rank
from fewstep.report.wording import count
from fewstep.sampling import describe_step, named_step
from fewstep.scores import Score

SEED = 0
UNSCORED_STEPS = (1, 4, 16)  # what to show of a generator that was not measured


class Entry(NamedTuple):
    """An exhibit, and how it is drawn."""

    exhibit: Exhibit
    who: Contender


class Setting(NamedTuple):
    """A way of sampling, and its score where there is one."""

    steps: int
    sampler: str
    score: Score | None

    @property
    def way(self) -> str:
        return f"{count(self.steps, 'step')} of {self.sampler}"


def entries(exhibits: Sequence[Exhibit]) -> list[Entry]:
    """The exhibits with their looks.

    Raises: InputError where there is nothing to show, or the exhibits make different things.
    """
    if not exhibits:
        raise InputError("a report needs at least one generator to show")
    specs = {(e.generator.spec.shape, e.generator.spec.classes) for e in exhibits}
    if len(specs) > 1:
        told = "; ".join(f"{shape} of {classes} classes" for shape, classes in sorted(specs))
        raise InputError(
            f"the generators make different things ({told}); report them one kind at a time"
        )
    shape = exhibits[0].generator.spec.shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"a report shows grey or colour images (1 or 3, h, w), not {shape}")
    if sum(exhibit.baseline for exhibit in exhibits) > 1:
        raise InputError("a report measures by one generator at most; mark one as the baseline")
    looks = iter(LOOKS * len(exhibits))
    return [
        Entry(e, Contender(e.name, BASELINE if e.baseline else next(looks), e.scores))
        for e in exhibits
    ]


def settings(entry: Entry) -> list[Setting]:
    """Ways of sampling to show: the scored ones, of the baseline the quickest and the best."""
    generator = entry.exhibit.generator
    if not entry.exhibit.scores:
        own = describe_step(generator.step)["name"]
        return [Setting(n, own, None) for n in generator.grid.counts or UNSCORED_STEPS]
    rows = rank([entry.who])[0].rows
    ends = (quickest(rows), best(rows))
    scores = [row.score for row in (ends if entry.who.is_yardstick else rows) if row]
    # scored with several seeds, it is still one way of sampling
    return list({(s.steps, s.sampler): Setting(s.steps, s.sampler, s) for s in scores}.values())


def featured(entry: Entry, *, alone: bool) -> Setting:
    """A student at its quickest; a teacher, or who has no competitors, at its best."""
    shown = settings(entry)
    if alone or entry.who.is_yardstick:
        return min(shown, key=lambda s: s.score.frechet if s.score else -s.steps)
    return min(shown, key=lambda s: s.score.evaluations if s.score else s.steps)


def shown_at(entries: Sequence[Entry]) -> str:
    """In words, what `featured` chooses; nothing of one alone."""
    if len(entries) < 2:
        return ""
    goal = next((entry.who.name for entry in entries if entry.who.is_yardstick), None)
    return f"Students at their quickest, {goal} at its best." if goal else "Each at its quickest."


def made(
    entry: Entry, setting: Setting, samples: int, labels: Sequence[int] | None = None
) -> UInt8[Tensor, "n c h w"]:
    """The first samples of SEED, in that way; by default of each class in turn."""
    generator = entry.exhibit.generator
    if describe_step(generator.step)["name"] != setting.sampler:
        generator = generator.with_sampler(step=named_step(setting.sampler))
    images = generate(generator, samples, steps=setting.steps, seed=SEED, labels=labels)
    return torch.cat([each for _, each in images])
