"""Trunks against what is published of them: weights, their names, and shapes worked out by hand."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import real_home
from fewstep.errors import InputError
from fewstep.metrics.extractors.trunks import TRUNKS


def drawn(name, seed=0):
    trunk = TRUNKS[name]()
    trunk.draw(torch.Generator().manual_seed(seed))
    return trunk


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "count"), [("squeeze", 722_496), ("alex", 2_469_696), ("vgg", 14_714_688)]
)
def test_as_many_weights_as_torchvisions(name, count):
    assert sum(weight.numel() for weight in TRUNKS[name]().parameters()) == count


def names(layers):
    return {f"features.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_weights_are_named_as_torchvisions():
    fires = [f"{i}.{part}" for i in (3, 4, 6, 7, 9, 10, 11, 12)
             for part in ("squeeze", "expand1x1", "expand3x3")]  # fmt: skip
    assert set(TRUNKS["squeeze"]().state_dict()) == names([0, *fires])
    assert set(TRUNKS["alex"]().state_dict()) == names([0, 3, 6, 8, 10])
    vgg = names([0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28])
    assert set(TRUNKS["vgg"]().state_dict()) == vgg


@pytest.mark.parametrize(
    ("name", "size", "shapes"),
    [
        # (64 - 3) // 2 + 1 = 31, then each pooling (n - 3) / 2 + 1: 15, 7, 3
        ("squeeze", 64, [(64, 31), (128, 15), (256, 7), *2 * [(384, 3)], *2 * [(512, 3)]]),
        # (33 - 3) // 2 + 1 = 16, then rounded up: 6.5 + 1 to 8, 2.5 + 1 to 4, 0.5 + 1 to 2
        ("squeeze", 33, [(64, 16), (128, 8), (256, 4), *2 * [(384, 2)], *2 * [(512, 2)]]),
        # (64 + 2 * 2 - 11) // 4 + 1 = 15, then (n - 3) // 2 + 1: 7, 3
        ("alex", 64, [(64, 15), (192, 7), (384, 3), (256, 3), (256, 3)]),
        ("vgg", 64, [(64, 64), (128, 32), (256, 16), (512, 8), (512, 4)]),
    ],
)
def test_shapes_by_hand(name, size, shapes):
    trunk = drawn(name)
    maps = trunk.feature_maps(noise(2, 3, size, size))
    assert [tuple(m.shape) for m in maps] == [(2, c, side, side) for c, side in shapes]
    assert trunk.channels == tuple(c for c, _ in shapes)


@pytest.mark.parametrize("name", TRUNKS)
def test_each_map_is_rectified_and_leads_to_the_next(name):
    """So no layer has written over what an earlier one returned."""
    trunk, images = drawn(name), noise(1, 3, 40, 48)
    before = images.clone()
    maps = trunk.feature_maps(images)
    assert torch.equal(images, before)
    found = [m.clone() for m in maps]
    x, reached = images, 0
    for layer in trunk.features:
        x = layer(x.clone())
        if reached < len(found) and x.shape == found[reached].shape:
            reached += torch.equal(x, found[reached])
    assert reached == len(found)
    assert all((m >= 0).all() and (m == 0).any() and (m > 0).any() for m in found)


@pytest.mark.parametrize("name", TRUNKS)
def test_the_smallest_image_is_the_smallest(name):
    trunk = drawn(name)
    least = trunk.smallest
    assert trunk.feature_maps(noise(1, 3, least, least))[-1].shape[2:] == (1, 1)
    with pytest.raises(RuntimeError, match="too small"):
        trunk.features(noise(1, 3, least, least - 1))
    with pytest.raises(InputError, match=f"{least}x{least - 1} are too small for the {name} trunk"):
        trunk.feature_maps(noise(1, 3, least, least - 1))


def test_building_and_drawing_leave_the_global_state():
    before = torch.get_rng_state()
    first, again, other = drawn("squeeze"), drawn("squeeze"), drawn("squeeze", seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weight = "features.3.squeeze.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_drawn_weights_keep_the_scale_through_all_layers():
    """He's rule: the mean square after each ReLU is that after the one before."""
    deepest = drawn("vgg").feature_maps(noise(1, 3, 64, 64))
    assert all(0.3 < m.square().mean() < 30 for m in deepest)


def test_gradient_reaches_images_and_no_weight():
    trunk, images = drawn("alex"), noise(1, 3, 40, 40).requires_grad_()
    sum(m.sum() for m in trunk.feature_maps(images)).backward()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in trunk.parameters())


def test_the_published_file_loads():
    path = Path(real_home()) / "weights" / "squeezenet1_1-features.safetensors"
    if not path.exists():
        pytest.skip("needs SqueezeNet's weights")
    trunk = TRUNKS["squeeze"]()
    trunk.load_state_dict(load_file(path), strict=True)
    assert all(weight.isfinite().all() for weight in trunk.parameters())
