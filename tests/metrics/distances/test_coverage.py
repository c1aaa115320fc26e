"""Precision, recall, density and coverage against plain counts, and where the answer is seen."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from fewstep.errors import InputError
from fewstep.metrics.distances import coverage, neighbours
from fewstep.metrics.distances.coverage import density_coverage, precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def radii(rows, k):
    """The k-th nearest other row: each row finds itself, or a copy at the same 0, first."""
    tree = NearestNeighbors(n_neighbors=k + 1, algorithm="kd_tree").fit(rows)
    return tree.kneighbors(rows)[0][:, k]


def plain(real, fake, k):
    """All four from all pairs of rows, measured by differences."""
    real, fake = real.double().numpy(), fake.double().numpy()
    away = cdist(real, fake)
    in_real = away <= radii(real, k)[:, None]
    in_fake = away <= radii(fake, k)
    return (
        (in_real.any(0).mean(), in_fake.any(1).mean()),
        (in_real.sum() / (k * len(fake)), in_real.any(1).mean()),
    )


def measured(real, fake, k):
    return precision_recall(real, fake, k=k), density_coverage(real, fake, k=k)


def sets(kind, n, m, d, seed=0):
    real, fake = normal(n, d, seed=seed), 0.9 * normal(m, d, seed=seed + 1) + 0.1
    if kind == "far":
        real, fake = real + 1000, fake + 1000
    elif kind == "modes":  # products lose what tells a row on the rim from one beyond
        real, fake = real.double(), fake.double()
        real[::2] += 1e7
        fake[::2] += 1e7
    elif kind == "copies":  # of fakes among the reals, and within each set
        fake[::3] = real[: len(fake[::3])]
        real[1::4], fake[1::5] = real[0], fake[0]
    elif kind == "grid":
        real, fake = (2 * real).round(), (2 * fake).round()
    return real, fake


@pytest.mark.parametrize("kind", ["normal", "far", "modes", "copies", "grid"])
@pytest.mark.parametrize(("n", "m", "d"), [(400, 1200, 5), (1100, 300, 3), (300, 310, 40)])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_equals_plain_counts(kind, n, m, d, k):
    real, fake = sets(kind, n, m, d)
    assert measured(real, fake, k) == plain(real, fake, k)


@settings(max_examples=30, deadline=None)
@given(
    tile=st.sampled_from([7, 16, 39]),
    seed=st.integers(0, 1000),
    kind=st.sampled_from(["normal", "copies", "grid"]),
)
def test_neither_blocks_nor_order_show(tile, seed, kind):
    real, fake = sets(kind, 40, 30, 4, seed)
    generator = torch.Generator().manual_seed(seed)
    real_order, fake_order = (torch.randperm(n, generator=generator) for n in (40, 30))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "TILE", tile)
        patch.setattr(neighbours, "TILE", tile)
        found = measured(real[real_order], fake[fake_order], 3)
    assert found == measured(real, fake, 3) == plain(real, fake, 3)


@pytest.mark.parametrize("kind", ["normal", "copies", "grid"])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_set_against_itself(kind, offset):
    real = sets(kind, 300, 10, 20)[0] + offset
    assert precision_recall(real, real.flip(0)) == (1, 1)
    density, covered = density_coverage(real, real.flip(0))
    assert covered == 1
    if kind == "normal":  # each ball holds its centre and k others
        assert density == pytest.approx(6 / 5, rel=1e-12)


def test_disjoint_clusters_have_nothing_in_common():
    real, fake = normal(200, 8), normal(200, 8, seed=1) + 50
    assert measured(real, fake, 3) == ((0, 0), (0, 0))


def test_one_mode_of_two_is_precise_and_covers_half():
    """Fakes from the first of two far modes, as dense as the reals there."""
    real, fake = normal(1000, 2), normal(500, 2, seed=1)
    real[500:] += 1000
    precision, recall = precision_recall(real, fake)
    density, covered = density_coverage(real, fake)
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.05)
    # a real ball of k others out of 499 is missed by 500 fakes with probability near 2^-5
    assert covered == pytest.approx(0.5 * (1 - 2**-5), abs=0.02)
    assert density == pytest.approx(1, abs=0.15)


def test_a_single_point_repeated_has_no_recall():
    real = normal(300, 2)
    fake = real[:1].repeat(100, 1)
    precision, recall = precision_recall(real, fake)
    assert precision == 1
    assert recall == 1 / 300  # balls of radius 0 still hold the row that they copy
    density, covered = density_coverage(real, fake)
    holding = (cdist(real.double(), real.double())[0] <= radii(real.double(), 5)).sum()
    assert covered == holding / 300
    assert density == holding / 5  # more than 1: fakes crowd where reals are dense


def test_density_and_coverage_of_equal_distributions_are_as_expected():
    """Naeem et al. 2020, Lemma 2: E density = 1 and E coverage = 1 - prod (n-i) / (n+m-i), i <= k.

    Of 20 draws of 400 and 300 rows.
    """
    found = [
        density_coverage(normal(400, 3, seed=2 * s), normal(300, 3, seed=2 * s + 1))
        for s in range(20)
    ]
    density, covered = np.mean(found, axis=0)
    missed = np.prod([(400 - i) / (700 - i) for i in range(1, 6)])
    assert density == pytest.approx(1, abs=0.03)
    assert covered == pytest.approx(1 - missed, abs=0.01)


def test_too_few_rows_are_refused():
    rows = normal(10, 2)
    with pytest.raises(InputError, match="k = 3 needs at least 4 real rows, not 3"):
        precision_recall(rows[:3], rows)
    with pytest.raises(InputError, match="k = 3 needs at least 4 fake rows, not 2"):
        precision_recall(rows, rows[:2])
    with pytest.raises(InputError, match="k = 5 needs at least 6 real rows, not 5"):
        density_coverage(rows[:5], rows)
    with pytest.raises(InputError, match="no fake rows"):
        density_coverage(rows, rows[:0])
    assert density_coverage(rows, rows[:1]).density > 0
