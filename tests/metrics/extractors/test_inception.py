"""The FID network against torch-fidelity's: the numbers are what inception_oracle.py printed."""

import pytest
import torch

from fewstep.metrics.extractors.inception import InceptionNetwork
from fewstep.metrics.extractors.resize import resize_images
from metrics.extractors.inception_oracle import FEATURES, LOGITS, blocks, drawn, noise

# the largest of all 2048 features, then FEATURES of them; the same of the 1008 logits and LOGITS
THEIRS = {
    "299x299": (
        (107.78709, [0.44574603, 13.460498, 0.98471379, 9.6281319]
         + [3.1469903, 12.405931, 19.128538, 0.36070356]),
        (80.560577, [15.845609, -16.510054, -12.294838, 15.27613]
         + [0.37058443, 25.396072, -10.838533, -33.083344]),
    ),
    "32x32, through tf1-bilinear": (
        (90.520638, [0.45591038, 11.747715, 0.81283778, 8.1012239]
         + [2.901191, 10.46339, 15.647093, 0.50044411]),
        (68.255661, [13.781683, -14.090261, -10.999164, 11.991176]
         + [0.85185206, 22.097429, -7.8379092, -26.935936]),
    ),
}  # fmt: skip
IMAGES = {"299x299": blocks, "32x32, through tf1-bilinear": noise}


@pytest.fixture(scope="module")
def network():
    result = InceptionNetwork()
    shapes = {name: tensor.shape for name, tensor in result.state_dict().items()}
    result.load_state_dict({name: drawn(name, shape) for name, shape in shapes.items()})
    return result


@pytest.mark.parametrize("name", THEIRS)
def test_equals_torch_fidelity(network, name):
    seen = network(resize_images(IMAGES[name]().float(), 299, "tf1-bilinear"))
    for row, indices, (largest, chosen) in zip(seen, (FEATURES, LOGITS), THEIRS[name], strict=True):
        assert row.abs().max().item() == pytest.approx(largest, rel=1e-5)
        assert row[0, indices].tolist() == pytest.approx(chosen, rel=0, abs=1e-5 * largest)


def test_images_do_not_depend_on_their_batch(network):
    images = resize_images(noise().float(), 299, "tf1-bilinear")
    pair = network(torch.cat([blocks().float(), images]))
    alone = network(images)
    assert torch.allclose(pair.features[1:], alone.features, rtol=1e-5, atol=1e-4)


def test_gradients_reach_the_images_and_not_the_weights(network):
    """The derivative along a direction is the difference quotient, in float64."""
    double = InceptionNetwork()
    double.load_state_dict(network.state_dict())
    double.double()
    images = resize_images(noise().double(), 299, "clean-bicubic")
    towards = torch.randn(
        images.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    images.requires_grad_()
    (slope,) = torch.autograd.grad(double(images).features.sum(), images)
    with torch.no_grad():
        ahead, behind = (double(images + h * towards).features.sum() for h in (1e-6, -1e-6))
    expected = (ahead - behind).item() / 2e-6
    assert (slope * towards).sum().item() == pytest.approx(expected, rel=1e-3)  # ReLUs have kinks
    assert not any(weight.requires_grad for weight in double.parameters())


def test_names_and_shapes_are_those_of_the_published_file(network):
    state = network.state_dict()
    assert len(state) == 566  # 94 convolutions with 6 entries each, and the last layer's 2
    expected = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Conv2d_4a_3x3.bn.running_var": (192,),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_5d.branch5x5_2.conv.weight": (64, 48, 5, 5),
        "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
        "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
        "Mixed_6e.branch7x7dbl_4.conv.weight": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
        "fc.weight": (1008, 2048),
        "fc.bias": (1008,),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected


def test_a_file_without_batch_counters_loads_too(network):
    """As torch-fidelity's converter from TensorFlow writes it: a plain dict of 472 tensors."""
    state = network.state_dict()
    plain = {name: state[name] for name in state if not name.endswith("num_batches_tracked")}
    assert len(plain) == 472
    InceptionNetwork().load_state_dict(plain, strict=True)
