"""Numbers as text, written alike on the command line and in the report."""


def number(value: float) -> str:
    """Three significant digits, or all digits before the decimal point if those are more."""
    sign, size = "−" * (value < 0), abs(value)
    if size and size < 9.995e-5:
        return f"{sign}{size:.2e}"
    return sign + (f"{size:,.0f}" if size >= 99.95 else f"{size:#.3g}")


def percent(share: float) -> str:
    """A share in percent, with one decimal, or two below 1 %."""
    return f"{100 * share:.{1 if share >= 0.01 else 2}f} %"
