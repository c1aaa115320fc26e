import pytest
import torch

from exporting import unet_generator
from fewstep.export.precision import round_weights, rounding_error, store_weight


@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_rounding_again_changes_nothing(dtype):
    once = round_weights(unet_generator(), dtype)
    twice = round_weights(once, dtype)
    for name, weight in once.state_dict().items():
        assert torch.equal(weight, twice.state_dict()[name]), name


def test_each_channel_of_int8_has_its_own_scale():
    weight = (
        torch.randn(5, 3, 3, 3) * torch.tensor([1e-3, 1.0, 10.0, 0.0, 1.0])[:, None, None, None]
    )
    stored = store_weight(weight, "int8")
    assert stored.values.dtype == torch.int8 and stored.scale.shape == (5, 1, 1, 1)
    peak = weight.abs().amax((1, 2, 3), keepdim=True)
    assert ((stored.restore() - weight).abs() <= peak / 254 * 1.001).all()
    bias = torch.randn(7)
    assert torch.equal(store_weight(bias, "int8").restore(), bias)
    numbers = torch.arange(4)
    assert store_weight(numbers, "f16").values.dtype == torch.int64


def test_the_error_of_rounding_is_that_of_the_images():
    generator = unet_generator()
    assert rounding_error(generator, generator, 1) == {"largest": 0.0, "rms": 0.0}
    f16, int8 = (rounding_error(generator, round_weights(generator, d), 1) for d in ("f16", "int8"))
    assert 0 < f16["largest"] < 0.01 < int8["largest"] < 0.5
