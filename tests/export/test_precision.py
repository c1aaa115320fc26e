from copy import deepcopy

import pytest
import torch

from exporting import unet_generator
from fewstep.backbones import UNetConfig
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.export.precision import round_weights, rounding_error
from fewstep.noise import noise_from_seeds
from fewstep.stored_weights import store_weight


@pytest.mark.parametrize("dtype", ["f16", "int8"])
def test_rounding_again_changes_nothing(dtype):
    once = round_weights(unet_generator(), dtype)
    twice = round_weights(once, dtype)
    for name, weight in once.state_dict().items():
        assert torch.equal(weight, twice.state_dict()[name]), name


def test_each_channel_of_int8_has_its_own_scale():
    weight = (
        torch.randn(5, 60, 3, 3) * torch.tensor([1e-3, 1.0, 10.0, 0.0, 1.0])[:, None, None, None]
    )
    stored = store_weight(weight, "int8")
    assert stored.values.dtype == torch.int8 and stored.scale.shape == (5, 1, 1, 1)
    peak = weight.abs().amax((1, 2, 3), keepdim=True)
    assert ((stored.restore() - weight).abs() <= peak / 254 * 1.001).all()
    for small in (torch.randn(5000), torch.randn(32, 64)):
        assert store_weight(small, "int8").values.dtype == torch.float32
        assert torch.equal(store_weight(small, "int8").restore(), small)
    numbers = torch.arange(4)
    assert store_weight(numbers, "f16").values.dtype == torch.int64


def test_the_error_of_rounding_is_that_of_the_images():
    generator = unet_generator()
    assert rounding_error(generator, generator, 1) == {"largest": 0.0, "rms": 0.0}
    f16, int8 = (rounding_error(generator, round_weights(generator, d), 1) for d in ("f16", "int8"))
    assert 0 < 4 * f16["largest"] < int8["largest"] < 0.5


def test_int8_keeps_the_mean_of_each_channel():
    config = UNetConfig(channels=(32,), layers=1, attention=(), middle_attention=False, groups=4)
    generator = unet_generator(config=config)
    rounded = round_weights(generator, "int8")
    uncorrected = deepcopy(generator)
    for parameter in uncorrected.parameters():
        parameter.copy_(store_weight(parameter, "int8").restore())
    noise = noise_from_seeds(range(64), generator.spec.shape)
    cond = Condition(torch.arange(64) % 3)
    expected = generator(noise, steps=4, cond=cond).mean((0, 2, 3))
    after, before = (g(noise, steps=4, cond=cond).mean((0, 2, 3)) for g in (rounded, uncorrected))
    assert (after - expected).abs().max() < 0.3 * (before - expected).abs().max()
    names = [name for name, p in generator.named_parameters() if p.ndim == 1]
    old, new = generator.state_dict(), rounded.state_dict()
    assert any(not torch.equal(old[name], new[name]) for name in names)


def test_a_weight_too_large_for_float16_gets_one_line():
    generator = unet_generator()
    generator.denoiser.backbone.conv_in.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(InputError, match="conv_in.weight has a weight of 100000, outside"):
        round_weights(generator, "f16")
    assert round_weights(generator, "int8").denoiser.backbone.conv_in.weight.max() == 1e5
