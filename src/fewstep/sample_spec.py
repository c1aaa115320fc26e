"""`SampleSpec`: the shape and the conditions of what a generator generates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, TypeVar

from annotated_types import Ge, Le, MaxLen

from fewstep.errors import InputError
from fewstep.ranges import NONEMPTY, Channels
from fewstep.text.base import TextEncoder

MAX_VALUES = 1 << 28
"""Largest number of values of a sample, as of an image of 9,459 x 9,459 pixels."""
MAX_CLASSES = 1 << 20
MAX_PROMPTS = 64
"""Largest number of example prompts."""


Item = TypeVar("Item")


def evenly_spread(items: Sequence[Item], count: int) -> tuple[Item, ...]:
    """The items in the middle of `count` equal parts, in their order; all if there are fewer."""
    count = min(len(items), count)
    return tuple(items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count))


@dataclass(frozen=True)
class SampleSpec:
    """Shape and conditions of what a generator generates."""

    shape: Annotated[tuple[Channels, ...], NONEMPTY, MaxLen(3)]
    """Shape of one sample: (channels, height, width), or (d,) for points."""
    classes: Annotated[int, Ge(0), Le(2**20)] = 0
    """Number of classes; 0 for an unconditional generator."""
    class_names: tuple[str, ...] = ()
    """One name for each class, or none at all."""
    text: TextEncoder | None = None
    """The encoder of prompts; None for a generator without text."""
    prompts: Annotated[tuple[str, ...], MaxLen(MAX_PROMPTS)] = ()
    """Captions of the training set: prompts to use where the caller gives none."""

    def __post_init__(self) -> None:
        sizes = 1 <= len(self.shape) <= 8 and all(size >= 1 for size in self.shape)
        if not sizes or math.prod(self.shape) > MAX_VALUES:
            raise InputError(
                f"a sample's shape is {list(self.shape[:8])}; it must have 1 to 8 sizes of at least"
                f" 1, and at most {MAX_VALUES:,} values"
            )
        if not 0 <= self.classes <= MAX_CLASSES:
            raise InputError(f"classes is {self.classes}; it must be from 0 to {MAX_CLASSES:,}")
        if self.class_names and len(self.class_names) != self.classes:
            raise InputError(
                f"there are {len(self.class_names)} class_names and {self.classes} classes: give "
                "one name for each class, or none"
            )

    @property
    def is_conditional(self) -> bool:
        """Whether there are classes or prompts."""
        return self.classes > 0 or self.text is not None

    def examples(self, count: int) -> tuple[str, ...]:
        """At most `count` of the example prompts, evenly spread."""
        return evenly_spread(self.prompts, count)

    def class_difference(self, other: "SampleSpec") -> str:
        """The first class whose names differ, such as "class 0 is 'cat' and 'ant'".

        Empty if all are equal, or if one of the two has no names.
        """
        if not (self.class_names and other.class_names):
            return ""
        names = zip_longest(self.class_names, other.class_names)
        for number, (a, b) in enumerate(names):
            if None in (a, b):
                return f"only one of them has class {number}, {(a or b)!r}"
            if a != b:
                return f"class {number} is {a!r} and {b!r}"
        return ""
