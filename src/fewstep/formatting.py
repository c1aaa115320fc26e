"""Format numbers as text, for the command line and the report."""

from collections.abc import Sequence


def number(value: float) -> str:
    """Format with three significant digits, or with all digits before the decimal point if more."""
    sign, size = "−" * (value < 0), abs(value)
    if size and size < 9.995e-5:
        return f"{sign}{size:.2e}"
    return sign + (f"{size:,.0f}" if size >= 99.95 else f"{size:#.3g}")


def percent(fraction: float) -> str:
    """Format a fraction of 1 in percent, with one decimal, or with two below 1 %."""
    return f"{100 * fraction:.{1 if fraction >= 0.01 else 2}f} %"


def interval(low: float | None, high: float | None) -> str:
    """Format an interval by its two ends; an empty string if one of them is None."""
    if low is None or high is None:
        return ""
    return f"{number(low)} – {number(high)}"


def ratio(a: float, b: float) -> str:
    """Format `a / b`, as in "2.50 ×"; a dash if `b` is 0."""
    return f"{number(a / b)} ×" if b else "–"


def duration(seconds: float) -> str:
    """Format seconds in a suitable unit: µs, ms, s, min or h."""
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
    """Format a number and its noun, in the plural unless `n` is 1: "1 image", "2 images"."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def listing(names: Sequence[str], *, limit: int = 3) -> str:
    """Join names by commas and "and"; those beyond `limit` are counted: "a, b, c and 2 more"."""
    items = [*names[:limit], *([f"{len(names) - limit} more"] if len(names) > limit else [])]
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def printable(text: str) -> str:
    """The text in one line, with escapes such as \\n and \\xe9 for what cannot be printed."""
    return "".join(c if c.isprintable() else escape(c) for c in text)


def escape(character: str) -> str:
    """The character as in Python's text, such as \\n."""
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def one_line(text: str, *, limit: int = 4000) -> str:
    """A message in one printable line: names in files of unknown origin may hold anything, such as
    megabytes of text, or what changes a terminal. The middle of a longer one is left out."""
    line = printable(" ".join(text.split()))
    half = limit // 2
    return line if len(line) <= limit else f"{line[:half]} … {line[-half:]}"
