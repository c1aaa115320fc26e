"""Nearest rows against scikit-learn and differences, and the radius of copies against its word."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from fewstep.errors import InputError
from fewstep.metrics.distances import neighbours
from fewstep.metrics.distances.neighbours import copy_radius, nearest


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid(*shape, seed=0, sides=3):
    """Rows of small integers: distances are exact, and ties and copies everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, sides, shape, generator=generator).float()


def truth(queries, reference, k, exclude=None):
    """Distances and rows by sorting all of them; lower rows first among equals."""
    away = cdist(queries.double().numpy(), reference.double().numpy())
    if exclude is not None:
        away[np.arange(len(away)), exclude] = np.inf
    rows = away.argsort(1, kind="stable")[:, :k]
    return np.take_along_axis(away, rows, 1), rows


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize(("n", "m", "d", "k"), [(700, 2500, 8, 5), (60, 1500, 300, 1)])
def test_equals_scikit_learn(n, m, d, k, offset):
    queries, reference = normal(n, d, seed=1) + offset, normal(m, d, seed=2) + offset
    theirs = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(reference.double().numpy())
    distances, rows = theirs.kneighbors(queries.double().numpy())
    found = nearest(queries, reference.split(333), k=k)
    assert np.array_equal(found.rows, rows)
    assert np.allclose(found.distances, distances, rtol=1e-13, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 90), max_size=5),
    tile=st.sampled_from([11, 32, 1024]),
    seed=st.integers(0, 1000),
    k=st.integers(1, 9),
    without=st.booleans(),
)
def test_ties_go_to_the_lower_row_whatever_the_blocks(cuts, tile, seed, k, without):
    queries, reference = grid(40, 3, seed=seed), grid(90, 3, seed=seed + 1)
    exclude = torch.randperm(90, generator=torch.Generator().manual_seed(seed))[:40]
    exclude = exclude if without else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "TILE", tile)
        found = nearest(queries, reference.tensor_split(sorted(cuts)), k=k, exclude=exclude)
    distances, rows = truth(queries, reference, k, exclude)
    assert np.array_equal(found.rows, rows)
    assert np.array_equal(found.distances, distances)


@pytest.mark.parametrize("tile", [1, 10, 1024])
def test_bits_do_not_depend_on_blocks_or_order(tile, monkeypatch):
    queries, reference = normal(20, 70, seed=1), normal(130, 70, seed=2)
    expected = nearest(queries, [reference], k=3)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(neighbours, "TILE", tile)
    monkeypatch.setattr(neighbours, "GATHER_SIZE", 70)
    blocks = nearest(queries, iter(reference.split(9)), k=3)
    shuffled = nearest(queries, [reference[order]], k=3)
    assert torch.equal(blocks.distances, expected.distances)
    assert torch.equal(blocks.rows, expected.rows)
    assert torch.equal(shuffled.distances, expected.distances)
    assert torch.equal(order[shuffled.rows], expected.rows)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("dim", [1, 64, 2048])
def test_a_copy_is_at_exactly_zero(dim, offset):
    reference = normal(200, dim) + offset
    copied = torch.tensor([190, 3, 77])
    found = nearest(reference[copied], reference.split(64))
    assert found.distances.eq(0).all()
    assert torch.equal(reference[found.rows[:, 0]], reference[copied])


def test_a_near_copy_is_at_its_distance_however_far_the_rows_lie():
    """By |x|^2 + |y|^2 - 2 x.y these would be 0, or the root of a negative number."""
    reference = normal(100, 16).double() + 1e6
    queries = reference[:20].clone()
    queries[:, 0] += 2.0**-20
    found = nearest(queries, [reference])
    assert torch.equal(found.rows[:, 0], torch.arange(20))
    assert found.distances[:, 0].numpy() == pytest.approx(2.0**-20, rel=1e-3)


def test_equal_rows_everywhere():
    rows = torch.full((1500, 4), 0.1)
    found = nearest(rows, rows.split(400), k=2, exclude=torch.arange(1500))
    expected = torch.tensor([0, 1]).repeat(1500, 1)
    expected[0], expected[1] = torch.tensor([1, 2]), torch.tensor([0, 2])
    assert found.distances.eq(0).all()
    assert torch.equal(found.rows, expected)


def test_a_row_does_not_find_itself_but_finds_its_copy():
    rows = normal(30, 5)
    rows[20] = rows[4]
    found = nearest(rows, rows.split(7), exclude=torch.arange(30))
    assert (found.rows[:, 0] != torch.arange(30)).all()
    assert found.rows[20, 0] == 4
    assert found.rows[4, 0] == 20
    assert found.distances.eq(0).sum() == 2


def test_too_few_rows_and_features_that_are_not_finite_are_refused():
    rows = normal(3, 2)
    assert nearest(rows, [rows], k=3).rows.shape == (3, 3)
    with pytest.raises(InputError, match="has 3 rows; for 4 nearest rows give more"):
        nearest(rows, [rows], k=4)
    with pytest.raises(InputError, match="has 3 rows; for 3 nearest other rows give more"):
        nearest(rows, [rows], k=3, exclude=torch.arange(3))
    with pytest.raises(InputError, match="has 0 rows"):
        nearest(rows, [])
    with pytest.raises(InputError, match="NaN or infinity"):
        nearest(rows, [torch.tensor([[0.0, torch.nan]])])


REFERENCE, DIM = 4000, 6


@pytest.fixture(scope="module")
def radius():
    """The radius of 1 % by a quarter of the reference rows."""
    reference = normal(REFERENCE, DIM, seed=1)
    rows = torch.randperm(REFERENCE, generator=torch.Generator().manual_seed(0))[:1000]
    return copy_radius(reference[rows], rows, reference.split(512))


def share_within(radius, rows):
    away = nearest(rows, [normal(REFERENCE, DIM, seed=1)]).distances
    return (away <= radius).double().mean().item()


def test_held_out_rows_are_copies_at_the_rate_of_the_reference():
    """Over many draws of reference and held-out rows the mean share is 5 %, the share asked for.

    A draw's share varies by the binomial of 200 sample and 400 fresh rows:
    s = sqrt(.05 .95 (1/200 + 1/400)) = 0.019; the mean of 60 draws by 0.0024, of which 3 are let.
    """
    shares = []
    for seed in range(60):
        rows = normal(1100, 3, seed=seed)
        reference, fresh = rows[:700], rows[700:]
        sample = torch.arange(0, 600, 3)
        limit = copy_radius(reference[sample], sample, [reference], share=0.05)
        shares.append((nearest(fresh, [reference]).distances <= limit).double().mean().item())
    assert np.mean(shares) == pytest.approx(0.05, abs=0.0075)


def test_one_held_out_set_has_about_one_per_cent(radius):
    """s = sqrt(.01 .99 (1/1000 + 1/5000)) = 0.0034 by the two binomials; 3 are let."""
    assert share_within(radius, normal(5000, DIM, seed=2)) == pytest.approx(0.01, abs=0.0103)
    assert share_within(radius, normal(5000, DIM, seed=2)) > 0.001


def test_copies_of_the_reference_are_found(radius):
    fresh, copied = normal(500, DIM, seed=2), normal(REFERENCE, DIM, seed=1)[:500]
    noisy = copied + 1e-3 * normal(500, DIM, seed=3)
    found = share_within(radius, torch.cat([fresh, noisy]))
    assert 0.5 <= found < 0.53
    assert share_within(radius, noisy) == 1


def test_the_radius_is_a_quantile_of_distances_to_other_rows():
    """Rows on a line at 0, 1, 3, 6, ...: the nearest other row of row i is i away, of row 0 it is
    1; the quantile of 9 values at 3/10 is the third."""
    reference = torch.arange(30).cumsum(0).float()[:, None]
    rows = torch.arange(3, 12)
    found = copy_radius(reference[rows], rows, reference.split(4), share=0.3)
    assert found == 5
    doubled = torch.cat([reference, reference])  # each row's nearest other row is its copy
    assert copy_radius(reference[rows], rows, [doubled], share=0.3) == 0


def test_a_sample_too_small_to_tell_is_refused():
    reference = normal(200, 2)
    rows = torch.arange(99)
    assert copy_radius(reference[rows], rows, [reference]) > 0
    with pytest.raises(InputError, match="0.01 needs at least 99 rows, not 98"):
        copy_radius(reference[:98], rows[:98], [reference])
