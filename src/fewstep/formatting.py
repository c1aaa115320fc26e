"""Numbers as text, written in the same way on the command line and in the report."""

from collections.abc import Sequence


def number(value: float) -> str:
    """Three significant digits, or all digits before the decimal point if those are more."""
    sign, size = "−" * (value < 0), abs(value)
    if size and size < 9.995e-5:
        return f"{sign}{size:.2e}"
    return sign + (f"{size:,.0f}" if size >= 99.95 else f"{size:#.3g}")


def percent(share: float) -> str:
    """A share in percent, with one decimal, or two below 1 %."""
    return f"{100 * share:.{1 if share >= 0.01 else 2}f} %"


def interval(low: float | None, high: float | None) -> str:
    """Both bounds, or an empty string if one of them is unknown."""
    if low is None or high is None:
        return ""
    return f"{number(low)} – {number(high)}"


def ratio(a: float, b: float) -> str:
    """`a / b`, or a dash if `b` is 0."""
    return f"{number(a / b)} ×" if b else "–"


def duration(seconds: float) -> str:
    """Seconds in the unit that gives a readable number: µs, ms, s, min or h."""
    for unit, size, below in (
        ("µs", 1e-6, 999.5),
        ("ms", 1e-3, 999.5),
        ("s", 1, 99.95),
        ("min", 60, 99.95),
    ):
        if seconds < below * size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 3600)} h"


def quantity(n: int, noun: str) -> str:
    """A number and its noun, in the plural unless `n` is 1."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listing(names: Sequence[str], *, limit: int = 3) -> str:
    """Names joined by commas and "and"; those beyond `limit` are counted."""
    items = [*names[:limit], *([f"{len(names) - limit} more"] if len(names) > limit else [])]
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
