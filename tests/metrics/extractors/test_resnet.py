"""ResNet-56: the published accuracy on CIFAR-10's test set, and what it does to images."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import real_home
from fewstep.data import load
from fewstep.metrics.extractors.resnet import Block, ResNet56


def noise(*shape, seed=0):
    return 255 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def random():
    network, generator = ResNet56(), torch.Generator().manual_seed(0)
    for weight in network.parameters():
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight, generator=generator)
    torch.nn.init.zeros_(network.linear.bias)
    return network


@pytest.fixture(scope="module")
def published():
    path = Path(real_home()) / "weights" / "resnet56-cifar10.safetensors"
    if not path.exists():
        pytest.skip("needs ResNet-56's weights")
    network = ResNet56()
    network.load_state_dict(load_file(path), strict=True)
    return network


@pytest.fixture(scope="module")
def cifar10():
    if not (Path(real_home()) / "data" / "cifar-10-batches-bin" / "test_batch.bin").exists():
        pytest.skip("needs CIFAR-10")
    return load("cifar10", split="test")


def right(network, images, labels):
    with torch.no_grad():
        logits = torch.cat([network(part.float()).logits for part in images.split(250)])
    return (logits.argmax(1) == labels).sum().item()


@pytest.mark.slow  # half a minute
def test_accuracy_is_the_published_one(published, cifar10):
    """Akamaster's table says 6.61 % of errors, at full count 661 of 10,000."""
    assert right(published, cifar10.images, cifar10.labels) == 9339


def test_the_first_thousand_images(published, cifar10):
    assert right(published, cifar10.images[:1000], cifar10.labels[:1000]) == 926


def test_features_are_the_pooled_last_map_and_make_the_logits(random):
    images = noise(3, 3, 32, 32)
    seen, maps = random(images), random.feature_maps(images)
    assert [tuple(m.shape) for m in maps] == [
        (3, 16, 32, 32), (3, 16, 32, 32), (3, 32, 16, 16), (3, 64, 8, 8)
    ]  # fmt: skip
    assert seen.features.shape == (3, 64)
    assert torch.allclose(seen.features, maps[-1].flatten(2).mean(2), rtol=1e-5)
    weight, bias = random.linear.weight, random.linear.bias
    assert torch.allclose(seen.logits, seen.features @ weight.T + bias, rtol=1e-4, atol=1e-5)


def test_as_many_weights_as_the_paper_says():
    """0.85 M in its table 6. Counted: stem, three stages of 18 convolutions, linear, batch norm."""
    convolutions = 9 * (3 * 16 + 18 * 16**2 + 16 * 32 + 17 * 32**2 + 32 * 64 + 17 * 64**2)
    norms = 2 * (19 * 16 + 18 * 32 + 18 * 64)
    count = sum(weight.numel() for weight in ResNet56().parameters())
    assert count == convolutions + norms + 64 * 10 + 10 == 853_018


def test_a_shortcut_without_weights_keeps_every_second_pixel():
    block = Block(16, 32).eval()
    for weight in (block.conv1.weight, block.conv2.weight):
        torch.nn.init.zeros_(weight)
    x = noise(2, 16, 6, 7)
    out = block(x)
    assert out.shape == (2, 32, 3, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_bytes_and_floats_of_one_value_are_one_image(random):
    images = noise(2, 3, 32, 32).round()
    assert torch.equal(random(images).logits, random(images.to(torch.uint8)).logits)


def test_the_mean_colour_is_zero_to_it(random):
    """ImageNet's mean, in [0, 255], leaves the convolutions nothing to see."""
    mean = 255 * torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    assert random.feature_maps(mean)[0].abs().max() < 1e-5


def test_it_stays_in_evaluation_mode_and_takes_no_gradient(random):
    host = torch.nn.ModuleList([random]).train()
    assert host.training
    assert not any(part.training for part in random.modules())
    before = {name: value.clone() for name, value in random.state_dict().items()}
    images = noise(2, 3, 32, 32).requires_grad_()
    random(images).features.sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in random.parameters())
    assert all(torch.equal(value, before[name]) for name, value in random.state_dict().items())


def test_building_leaves_the_global_state():
    before = torch.get_rng_state()
    ResNet56()
    assert torch.equal(torch.get_rng_state(), before)
