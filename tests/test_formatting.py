import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.formatting import duration, interval, listing, number, percent, quantity, ratio


@pytest.mark.parametrize(
    ("value", "said"),
    [(7.418, "7.42"), (5.1, "5.10"), (82.31, "82.3"), (99.949, "99.9"), (99.96, "100"),
     (1234.5, "1,234"), (0.01234, "0.0123"), (0.0, "0.00"), (9.999, "10.0"), (-0.0123, "−0.0123"),
     (-123.4, "−123"), (1.234e-5, "1.23e-05")],
)  # fmt: skip
def test_number(value, said):
    assert number(value) == said


@settings(deadline=None, max_examples=200)
@given(st.floats(1e-7, 1e9), st.booleans())
def test_a_number_is_read_back_within_half_a_percent(size, negative):
    value = -size if negative else size
    read = float(number(value).replace(",", "").replace("−", "-"))
    assert read == pytest.approx(value, rel=5.1e-3)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(4.2e-4, "420 µs"), (9.994e-4, "999 µs"), (9.996e-4, "1.00 ms"), (0.0123, "12.3 ms"),
     (0.9999, "1.00 s"), (44.0, "44.0 s"), (160.0, "2.67 min"), (9000.0, "2.50 h")],
)  # fmt: skip
def test_duration(seconds, said):
    assert duration(seconds) == said


def test_counts_shares_and_lists():
    assert [quantity(n, "step") for n in (1, 2, 50_000)] == ["1 step", "2 steps", "50,000 steps"]
    assert [percent(p) for p in (0.951, 0.0005, 0.0, 1.0)] == [
        "95.1 %", "0.05 %", "0.00 %", "100.0 %",
    ]  # fmt: skip
    assert interval(-0.001, 2.0) == "−0.00100 – 2.00"
    assert interval(None, 1.0) == interval(1.0, None) == ""
    assert ratio(1.0, 4.0) == "0.250 ×" and ratio(1.0, 0.0) == "–"
    assert [listing("abcde"[:n]) for n in (1, 2, 3, 4, 5)] == [
        "a", "a and b", "a, b and c", "a, b, c and 1 more", "a, b, c and 2 more",
    ]  # fmt: skip
