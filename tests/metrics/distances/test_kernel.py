"""The kernel distance against torchmetrics, moments in closed form, and its interval's word."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.kid import poly_mmd

from fewstep.errors import InputError
from fewstep.metrics.distances import kernel
from fewstep.metrics.distances.kernel import kernel_distance


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(a, b):
    """The unbiased statistic, pair by pair, for any counts."""
    a, b = a.double().numpy(), b.double().numpy()

    def between(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    aa, bb = between(a, a), between(b, b)
    n, m = len(a), len(b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return within - 2 * between(a, b).mean()


def plain_spread(a, b, blocks):
    """The standard error, by leaving out each block and starting again."""

    def variance(rows, other):
        parts = rows.tensor_split(min(blocks, len(rows)))
        rest = [torch.cat(parts[:i] + parts[i + 1 :]) for i in range(len(parts))]
        values = np.array([plain(some, other) for some in rest])
        return (len(parts) - 1) * values.var()

    return math.sqrt(variance(a, b) + variance(b, a))


def population(a, b):
    """MMD^2 of two normal distributions on a line, given as (mean, std), from their moments.

    k(x, y) = 1 + 3 xy + 3 x^2 y^2 + x^3 y^3, so MMD^2 = sum of 3, 3, 1 times squared differences
    of the moments E x, E x^2, E x^3.
    """
    moments = [(mean, mean**2 + std**2, mean**3 + 3 * mean * std**2) for mean, std in (a, b)]
    first, second, third = np.subtract(*moments)
    return 3 * first**2 + 3 * second**2 + third**2


def drawn(count, distribution, generator):
    mean, std = distribution
    return mean + std * torch.randn(count, 1, generator=generator)


@pytest.mark.parametrize(("count", "dim"), [(40, 3), (1300, 64), (200, 700)])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_equals_torchmetrics(count, dim, scale):
    a = scale * normal(count, dim, seed=1)
    b = scale * (1.1 * normal(count, dim, seed=2) + 0.1)
    theirs = poly_mmd(a.double(), b.double(), degree=3, gamma=None, coef=1.0).item()
    assert kernel_distance(a, b).value == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 50), (57, 21), (1100, 130)])
def test_unequal_counts_pair_by_pair(n, m):
    a, b = normal(n, 5, seed=1), 2 * normal(m, 5, seed=2) + 1
    found = kernel_distance(a, b).value
    assert found == pytest.approx(plain(a, b), rel=1e-10)
    assert found == pytest.approx(kernel_distance(b, a).value, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(3, 4), (30, 57), (200, 45)])
@pytest.mark.parametrize("blocks", [3, 20])
def test_the_interval_is_that_of_blocks_left_out(n, m, blocks):
    a, b = normal(n, 5, seed=1), 2 * normal(m, 5, seed=2)
    value, low, high = kernel_distance(a, b, blocks=min(blocks, n))
    spread = plain_spread(a, b, min(blocks, n))
    assert high - value == pytest.approx(1.96 * spread, rel=1e-9)
    assert value - low == pytest.approx(1.96 * spread, rel=1e-9)


@pytest.mark.parametrize("other", [(0.0, 1.0), (0.5, 1.0), (0.2, 1.3)])
def test_the_mean_over_many_draws_is_the_population_value(other):
    """Of 12 and 20 rows, where pairs of a row with itself would add 24/12 + 24/20 or more."""
    generator = torch.Generator().manual_seed(0)
    values = [
        kernel_distance(drawn(12, other, generator), drawn(20, (0, 1), generator)).value
        for _ in range(1200)
    ]
    error = np.std(values) / math.sqrt(len(values))
    assert np.mean(values) == pytest.approx(population(other, (0, 1)), abs=4 * error)
    assert error < 0.4
    if other == (0, 1):
        assert np.mean(np.array(values) < 0) > 0.3


@pytest.mark.parametrize(("n", "m"), [(300, 300), (600, 150), (150, 600)])
def test_the_interval_holds_the_population_value_95_times_in_100(n, m):
    """Of rows near 0, whose cubes have no heavy tails; the fewer rows are a's, b's or neither's."""
    generator = torch.Generator().manual_seed(1)
    a, b, held = (0.4, 0.5), (0.0, 0.4), 0
    for _ in range(300):
        found = kernel_distance(drawn(n, a, generator), drawn(m, b, generator))
        held += found.low <= population(a, b) <= found.high
    assert 0.9 <= held / 300 <= 0.985


@settings(max_examples=30, deadline=None)
@given(tile=st.integers(1, 40), seed=st.integers(0, 100), blocks=st.integers(2, 10))
def test_tiles_do_not_show(tile, seed, blocks):
    a, b = normal(31, 4, seed=seed), normal(26, 4, seed=seed + 1) + 0.5
    expected = kernel_distance(a, b, blocks=blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "TILE", tile)
        assert kernel_distance(a, b, blocks=blocks) == pytest.approx(expected, rel=1e-9)


def test_neither_order_nor_blocks_change_the_value():
    a, b = normal(300, 6, seed=1), normal(211, 6, seed=2) + 0.3
    expected = kernel_distance(a, b)
    for blocks, seed in itertools.product([2, 20, 1000], range(3)):
        generator = torch.Generator().manual_seed(seed)
        shuffled = [rows[torch.randperm(len(rows), generator=generator)] for rows in (a, b)]
        found = kernel_distance(*shuffled, blocks=blocks)
        assert found.value == pytest.approx(expected.value, rel=1e-9)
        assert found.low < found.value < found.high
        # an order moves only the spread, and a little
        assert 0.3 < (found.high - found.low) / (expected.high - expected.low) < 3


def test_a_set_with_itself_is_below_zero():
    """Pairs of a row with its copy are counted, of a row with itself are not."""
    a = normal(50, 6)
    assert kernel_distance(a, a.clone()).value < 0
    assert kernel_distance(a, a).value == pytest.approx(kernel_distance(a, a.flip(0)).value)


def test_few_rows():
    two = kernel_distance(normal(2, 3), normal(9, 3, seed=1))
    assert (two.low, two.high) == (-math.inf, math.inf)
    assert math.isfinite(two.value)
    three = kernel_distance(normal(3, 3), normal(3, 3, seed=1))
    assert math.isfinite(three.low)
    with pytest.raises(InputError, match="at least 2 rows a set, not 1 and 9"):
        kernel_distance(normal(1, 3), normal(9, 3))
    with pytest.raises(InputError, match="at least 2 rows a set, not 9 and 0"):
        kernel_distance(normal(9, 3), normal(0, 3))
