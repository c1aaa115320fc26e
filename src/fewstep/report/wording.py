"""Numbers in words: one way to say each, all over the report."""

from collections.abc import Sequence

from fewstep.formatting import number, percent

__all__ = ["count", "duration", "interval", "listed", "number", "percent", "ratio"]


def interval(low: float | None, high: float | None) -> str:
    """From where to where; empty where it is not known."""
    return "" if low is None or high is None else f"{number(low)} – {number(high)}"


def ratio(a: float, b: float) -> str:
    """How many times b a is."""
    return f"{number(a / b)} ×" if b else "–"


def duration(seconds: float) -> str:
    """In the unit that suits it."""
    for unit, size, below in (
        ("µs", 1e-6, 999.5),
        ("ms", 1e-3, 999.5),
        ("s", 1, 99.95),
        ("min", 60, 99.95),
    ):
        if seconds < below * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 3600)} h"


def count(n: int, noun: str) -> str:
    """A number of things."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listed(names: Sequence[str], *, most: int = 3) -> str:
    """Names as a sentence has them; of many, the first ones."""
    said = [*names[:most], *([f"{len(names) - most} more"] if len(names) > most else [])]
    return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
