import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.data.toys import GaussianMixture, checkerboard, eight_gaussians, two_moons

LOPSIDED = GaussianMixture(
    torch.tensor([[-1.0, 0.5], [0.3, -0.8], [2.0, 1.0]], dtype=torch.float64),
    0.3,
    torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64),
)
scales = st.tuples(st.floats(0, 1), st.floats(0.05, 5))


def rows(n=6, seed=0):
    return 2 * torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20, deadline=None)
@given(scales)
def test_score_is_the_gradient_of_the_log_density(scale):
    x_t = rows().requires_grad_()
    (gradient,) = torch.autograd.grad(LOPSIDED.log_density(x_t, *scale).sum(), x_t)
    assert torch.allclose(LOPSIDED.score(x_t, *scale), gradient, rtol=1e-9, atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(scales)
def test_denoise_and_score_obey_tweedie(scale):
    alpha, sigma = scale
    x_t = rows()
    moved = x_t + sigma**2 * LOPSIDED.score(x_t, alpha, sigma)
    assert torch.allclose(alpha * LOPSIDED.denoise(x_t, alpha, sigma), moved, atol=1e-9)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.5), (0.6, 0.8), (0.2, 2.0)])
def test_denoise_is_the_posterior_mean_by_monte_carlo(alpha, sigma):
    x0, _ = LOPSIDED.points(400_000, seed=1)
    x_t = torch.tensor([[0.4, 0.1], [-0.7, 0.6]], dtype=torch.float64)
    for row, expected in zip(x_t, LOPSIDED.denoise(x_t, alpha, sigma), strict=True):
        weight = (-(row - alpha * x0).square().sum(1) / (2 * sigma**2)).softmax(0)
        assert torch.allclose(weight @ x0, expected, atol=0.01)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.7, 0.3), (0.0, 1.0)])
def test_the_density_integrates_to_one(alpha, sigma):
    axis = torch.linspace(-8, 8, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    cell = (axis[1] - axis[0]) ** 2
    assert LOPSIDED.log_density(grid, alpha, sigma).exp().sum() * cell == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sigma", [0.0, 1e-12, 1e-3, 1.0, 80.0, 1e6, 1e12])
def test_finite_from_no_noise_to_nothing_but_noise(dtype, sigma):
    toy = eight_gaussians()
    x_t = (rows() * max(sigma, 1)).to(dtype)
    results = [of(x_t, 1.0, sigma) for of in (toy.denoise, toy.score, toy.log_density)]
    assert all(result.isfinite().all() and result.dtype == dtype for result in results)


def test_denoise_goes_from_the_point_to_the_mean():
    x_t = rows()
    assert torch.allclose(LOPSIDED.denoise(x_t, 0.5, 1e-9), x_t / 0.5, atol=1e-9)
    mean = (LOPSIDED.weights / 8) @ LOPSIDED.means
    assert torch.allclose(LOPSIDED.denoise(x_t, 1.0, 1e6), mean.expand(6, 2), atol=1e-5)
    assert torch.allclose(LOPSIDED.denoise(x_t, 0.0, 1.0), mean.expand(6, 2))


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_noise_level_a_row_never_runs_along_the_columns(shape):
    x_t, alpha, sigma = rows(2), torch.tensor([0.9, 0.4]), torch.tensor([0.2, 1.5])
    for of in (LOPSIDED.denoise, LOPSIDED.score, LOPSIDED.log_density):
        together = of(x_t, alpha.reshape(shape), sigma.reshape(shape))
        alone = [of(x_t[i : i + 1], alpha[i], sigma[i]) for i in range(2)]
        assert torch.allclose(together, torch.cat(alone))


def test_points_have_the_mixtures_moments():
    points, labels = LOPSIDED.points(200_000, seed=0)
    share = LOPSIDED.weights / 8
    assert torch.allclose(torch.bincount(labels) / 200_000, share.float(), atol=0.005)
    for k in range(3):
        inside = points[labels == k]
        assert torch.allclose(inside.mean(0), LOPSIDED.means[k], atol=0.01)
        assert inside.std(0).sub(0.3).abs().max() < 0.005


def test_eight_gaussians_are_as_documented():
    toy = eight_gaussians()
    points, labels = toy.points(100_000, seed=0)
    assert points.dtype == torch.float32
    assert torch.allclose(toy.means.norm(dim=1), torch.full((8,), 0.8))
    assert points.std(0).tolist() == pytest.approx([0.571, 0.571], abs=0.005)
    assert points.mean(0).abs().max() < 0.01
    assert torch.cdist(points, toy.means).argmin(1).eq(labels).float().mean() > 0.999


@pytest.mark.parametrize(
    "draw", [eight_gaussians().points, two_moons, checkerboard], ids=["mixture", "moons", "board"]
)
def test_draws_follow_their_seed_and_leave_torchs_alone(draw):
    before = torch.random.get_rng_state()
    first, again, other = draw(50, 7), draw(50, 7), draw(50, 8)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(before, torch.random.get_rng_state())


def test_two_moons_lie_on_their_half_circles():
    points, labels = two_moons(50_000, seed=0)
    side = 1 - 2 * labels.unsqueeze(1)
    # both moons turned onto the upper one
    arc = points * side + torch.tensor([1 / 3, 1 / 6])
    assert arc.norm(dim=1).sub(2 / 3).abs().mean() == pytest.approx(
        0.03 * math.sqrt(2 / math.pi), rel=0.03
    )
    assert arc[:, 1].min() > -0.2
    assert points.mean(0).abs().max() < 0.01
    assert points.std(0).max().item() == pytest.approx(0.578, abs=0.005)


def test_checkerboard_is_uniform_on_the_dark_squares():
    points, labels = checkerboard(80_000, seed=0)
    square = ((points + 1) * 2).floor().long()
    assert square.min() == 0 and square.max() == 3
    assert square.sum(1).remainder(2).eq(0).all()
    assert torch.equal(square[:, 0] * 2 + square[:, 1] // 2, labels)
    assert torch.bincount(labels).sub(10_000).abs().max() < 500
    inside = (points + 1) * 2 - square
    assert inside.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert inside.std(0).tolist() == pytest.approx([12**-0.5] * 2, abs=0.01)
