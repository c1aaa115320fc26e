import pytest
import torch

from fewstep.losses import PseudoHuber, SquareError


def test_square_error_is_the_mean_over_a_row():
    a = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    assert SquareError()(a, torch.zeros_like(a)).tolist() == [2.5, 0.0]


def test_pseudo_huber_is_the_published_formula():
    """√(|a − b|² + c²) − c with c = 0.00054·√d: Song and Dhariwal 2023."""
    a, b = torch.randn(5, 3, 32, 32), torch.randn(5, 3, 32, 32)
    c = 0.00054 * 3072**0.5
    wanted = torch.sqrt(((a - b) ** 2).sum((1, 2, 3)) + c**2) - c
    torch.testing.assert_close(PseudoHuber()(a, b), wanted)


@pytest.mark.parametrize("c", [0.0, 0.00054])
def test_gradients_are_finite_where_the_images_are_equal(c):
    a = torch.zeros(2, 4, requires_grad=True)
    PseudoHuber(c=c)(a, torch.zeros(2, 4)).sum().backward()
    assert a.grad.tolist() == [[0.0] * 4] * 2


def test_without_a_width_it_is_the_norm():
    a = torch.tensor([[3.0, 4.0]])
    assert float(PseudoHuber(c=0.0)(a, torch.zeros_like(a))) == pytest.approx(5.0)
