"""Schedules of methods, which follow the number of training steps."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from fewstep.errors import InputError


def step_ranges(lengths: Sequence[float], steps: int) -> list[tuple[int, int]]:
    """Divide `steps` training steps into ranges [first, stop) of these relative lengths.

    Each range has at least one step. Raises: InputError for lengths of 0 or less, or fewer steps
    than lengths.
    """
    count = len(lengths)
    if min(lengths) <= 0:
        raise InputError(
            f"method.phases is {list(lengths)}; the relative lengths of the phases must be above 0"
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


def count_steps(setting: float, steps: int) -> float:
    """The steps of a setting that is a number of steps or, below 1, a share of `steps`."""
    return setting * steps if setting < 1 else setting
