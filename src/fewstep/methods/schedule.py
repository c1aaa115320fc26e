"""Schedules of methods, which follow the number of training steps."""

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise

from fewstep.errors import InputError


def step_ranges(lengths: Sequence[float], steps: int) -> list[tuple[int, int]]:
    """Divide `steps` training steps into ranges [first, stop) of these relative lengths.

    Each range has at least one step. Raises: InputError for lengths that are not above 0 and
    finite, or fewer steps than lengths.
    """
    count = len(lengths)
    if not all(0 < length < math.inf for length in lengths):
        raise InputError(
            f"method.phases is {list(lengths)}; the relative lengths of the phases must be above 0 "
            "and finite"
        )
    if steps < count:
        raise InputError(
            f"fit.steps is {steps}, but the method has {count} phases of at least 1 step: set "
            f"fit.steps to {count} or more"
        )
    stops = [0]
    for i, length in enumerate(accumulate(lengths), 1):
        stop = round(steps * length / sum(lengths))
        stops.append(min(max(stop, stops[-1] + 1), steps - (count - i)))
    return list(pairwise(stops))


def count_steps(setting: float, steps: int) -> int:
    """The steps of a setting that is a whole number of steps or, below 1, a share of `steps`."""
    return round(setting * steps if setting < 1 else setting)


def is_share(setting: float) -> bool:
    """Whether `count_steps` takes the setting as a share of the steps."""
    return 0 < setting < 1


def check_steps(setting: float, key: str) -> None:
    """Raise InputError unless `count_steps` can count the setting `key`."""
    if not (0 <= setting < 1 or 1 <= setting < math.inf and setting == int(setting)):
        raise InputError(
            f"{key} is {setting}; it must be a whole number of steps, or a share of the training "
            "from 0 to below 1"
        )
