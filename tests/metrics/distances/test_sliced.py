"""Sliced Wasserstein distance against closed forms and optimal assignment."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from fewstep.metrics.distances.sliced import sliced_wasserstein


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assigned(a, b):
    """W2 of two equally large sets by solving the assignment problem."""
    cost = torch.cdist(a.double(), b.double()).square().numpy()
    return math.sqrt(cost[linear_sum_assignment(cost)].mean())


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 100))
def test_on_a_line_it_is_the_optimal_assignment(n, m, seed):
    a, b = normal(n, 1, seed=seed), 2 * normal(m, 1, seed=seed + 1) + 1
    whole = math.lcm(n, m)  # repeating points changes no distribution
    expected = assigned(a.repeat(whole // n, 1), b.repeat(whole // m, 1))
    assert sliced_wasserstein(a, b) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("count", [500, 1000])
def test_a_shift_by_v_is_its_length_over_root_d(count):
    points, shift = normal(500, 2), torch.tensor([3.0, 4.0])
    other = (points + shift).repeat(count // 500, 1)
    found = sliced_wasserstein(points, other, projections=4000)
    assert found == pytest.approx(5 / math.sqrt(2), rel=0.02)


def test_gaussians_of_different_width():
    """W2 of N(0, 1) and N(0, 9) on every line is 2."""
    found = sliced_wasserstein(normal(20_000, 2), 3 * normal(15_000, 2, seed=1))
    assert found == pytest.approx(2, rel=0.03)


def test_a_set_with_itself_is_zero_in_any_order_and_the_seed_decides():
    points, others = normal(100, 2), normal(90, 2, seed=1)
    assert sliced_wasserstein(points, points.flip(0)) == 0
    first = sliced_wasserstein(points, others, projections=3)
    assert first == sliced_wasserstein(points, others, projections=3, seed=0)
    assert first != sliced_wasserstein(points, others, projections=3, seed=1)
