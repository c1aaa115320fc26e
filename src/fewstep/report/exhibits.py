"""The exhibits of a report, which are its generators, each with a colour and a marker."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.comparison import Exhibit
from fewstep.errors import InputError
from fewstep.report.svg import BASELINE, LOOKS, Look


@dataclass(frozen=True, eq=False)
class StyledExhibit:
    """An entry of a report: an exhibit with the colour and marker of its lines in charts."""

    exhibit: Exhibit
    look: Look


def style_exhibits(exhibits: Sequence[Exhibit]) -> list[StyledExhibit]:
    """Check the exhibits, and give each a colour and a marker.

    Raises InputError if there are none, if they generate images of different shapes or classes,
    if these are not images of 1 or 3 channels, or if several exhibits are marked as baseline.
    """
    if not exhibits:
        raise InputError("a report needs at least one generator")
    specs = {(e.generator.image_shape, e.generator.spec.classes) for e in exhibits}
    if len(specs) > 1:
        kinds = "; ".join(f"{shape} with {classes} classes" for shape, classes in sorted(specs))
        raise InputError(
            f"the generators make images of different shapes or classes ({kinds}): write a "
            "separate report for each of these"
        )
    if len({exhibit.generator.spec.text is not None for exhibit in exhibits}) > 1:
        raise InputError(
            "some of the generators read prompts and others do not: write a separate report for "
            "each kind"
        )
    for exhibit in exhibits:
        if difference := exhibits[0].generator.spec.class_difference(exhibit.generator.spec):
            raise InputError(
                f"{exhibits[0].name} and {exhibit.name} have different classes: {difference}; "
                "write a separate report for each of these"
            )
    shape = exhibits[0].generator.image_shape
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(f"a report shows grey or colour images (1 or 3, h, w), not {shape}")
    baselines = sum(exhibit.baseline for exhibit in exhibits)
    if baselines > 1:
        raise InputError(
            f"a report has one baseline, and {baselines} runs are marked as baseline: mark one"
        )
    looks = iter(LOOKS * len(exhibits))
    return [StyledExhibit(e, BASELINE if e.baseline else next(looks)) for e in exhibits]


def training_lines(progress: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of a training log that contain losses, without those of scores and hardware."""
    return [line for line in progress if "images" in line]


def training_seconds(progress: Iterable[Mapping[str, Any]]) -> float:
    """Total training time in seconds; the logged time restarts from 0 when a run resumes."""
    total, last = 0.0, 0.0
    for line in progress:
        # a run logs its hardware when it starts or resumes; older logs lack these lines
        now = 0.0 if "hardware" in line else line.get("seconds", last)
        if now < last:
            total += last
        last = now
    return total + last
