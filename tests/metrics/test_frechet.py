"""Fréchet distance against closed forms, scipy and torchmetrics on the same features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import _compute_fid

from fewstep.errors import InputError
from fewstep.metrics.features import Pixels
from fewstep.metrics.frechet import Moments, frechet_distance, moments


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def measured(rows):
    result = Moments(rows.shape[1])
    result.update(rows)
    return result


def with_moments(mean, root, seed=0):
    """Points whose sample mean is `mean` and whose sample covariance is root root^T, exactly."""
    rows = normal(40, len(mean), seed=seed)
    rows = rows - rows.mean(0)
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(rows.T.cov()), rows.T, upper=False
    ).T
    return measured(white @ root.T + mean)


def rotation(dim, seed=0):
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def scipy_distance(a, b):
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy()).real
    means = (a.mean - b.mean).square().sum().item()
    return means + (a.covariance + b.covariance).trace().item() - 2 * np.trace(root)


def test_axis_aligned_gaussians_in_closed_form():
    mean_a, mean_b = normal(5, seed=1), normal(5, seed=2)
    std_a, std_b = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor([2.0, 1, 3, 9, 0.1])
    turn = rotation(5)
    a = with_moments(turn @ mean_a, turn @ std_a.diag())
    b = with_moments(turn @ mean_b, turn @ std_b.double().diag(), seed=3)
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_covariances_that_do_not_commute_in_closed_form():
    root_a, root_b = normal(2, 2, seed=1), normal(2, 2, seed=2)
    zero = torch.zeros(2, dtype=torch.float64)
    cov_a, cov_b = root_a @ root_a.T, root_b @ root_b.T
    # for 2x2: (tr M^1/2)^2 = tr M + 2 (det M)^1/2
    product = cov_a @ cov_b
    overlap = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = cov_a.trace() + cov_b.trace() - 2 * overlap
    found = frechet_distance(with_moments(zero, root_a), with_moments(zero, root_b, seed=3))
    assert found == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("dim", [3, 64])
def test_equals_scipy_and_torchmetrics(dim):
    rows_a, rows_b = normal(500, dim, seed=1), normal(400, dim, seed=2)
    a = measured(rows_a @ normal(dim, dim, seed=3))
    b = measured(rows_b @ normal(dim, dim, seed=4) + 0.3)
    found = frechet_distance(a, b)
    theirs = _compute_fid(a.mean, a.covariance, b.mean, b.covariance).item()
    assert found == pytest.approx(theirs, rel=1e-9)
    assert found == pytest.approx(scipy_distance(a, b), rel=1e-9)
    assert found == pytest.approx(frechet_distance(b, a), rel=1e-12)


@pytest.mark.parametrize("count", [2, 10, 300])
def test_a_set_with_itself_is_zero_even_with_fewer_rows_than_features(count):
    rows = 100 * normal(count, 50) + 1000
    a, again = measured(rows), measured(rows.flip(0))
    assert 0 <= frechet_distance(a, again) < 1e-12 * a.covariance.trace().item()


def test_singular_covariances_in_closed_form():
    """Two Gaussians, each on a line: tr (S_a S_b)^1/2 = s t |u.v|."""
    u, v = rotation(30)[:, 0], rotation(30, seed=1)[:, 0]
    s, t = 3.0, 0.5
    line = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None] / 2**0.5  # variance 1
    a, b = measured(s * line * u), measured(t * line * v)
    expected = s**2 + t**2 - 2 * s * t * (u @ v).abs().item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_constant_features_add_nothing():
    rows_a, rows_b = normal(100, 6, seed=1), 2 * normal(80, 6, seed=2)
    padded = [torch.cat([rows, torch.ones(len(rows), 5)], 1) for rows in (rows_a, rows_b)]
    expected = frechet_distance(measured(rows_a), measured(rows_b))
    found = frechet_distance(*map(measured, padded))
    assert found == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 59), unique=True, max_size=10),
    seed=st.integers(0, 1000),
    offset=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_moments_do_not_depend_on_batches_or_order(cuts, seed, offset):
    rows = normal(60, 4) @ normal(4, 4, seed=1) + offset
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    streamed = Moments(4)
    for part in rows[order].tensor_split(sorted(cuts)):
        streamed.update(part)
    scale = 1 + offset  # rows near 1e4 are themselves only known to 1e-12
    assert streamed.count == 60
    assert np.allclose(streamed.mean, rows.numpy().mean(0), rtol=1e-13, atol=1e-13 * scale)
    expected = np.cov(rows.numpy().T)
    assert np.allclose(streamed.covariance, expected, rtol=1e-12, atol=1e-12 * scale)


def test_moments_of_images_stream_through_an_extractor():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 1, 3, 3), dtype=torch.uint8, generator=generator)
    found = moments(Pixels(), iter(images.split(7)))
    rows = images.flatten(1).numpy() / 255
    assert found.count == 50
    assert np.allclose(found.mean, rows.mean(0), atol=1e-7)  # the features are float32
    assert np.allclose(found.covariance, np.cov(rows.T), atol=1e-7)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="no images"):
        moments(Pixels(), [])
    one = moments(Pixels(), [torch.zeros(1, 1, 2, 2, dtype=torch.uint8)])
    with pytest.raises(InputError, match="at least 2 images a set, not 1"):
        frechet_distance(one, one)
