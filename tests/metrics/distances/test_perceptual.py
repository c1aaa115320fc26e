"""LPIPS against torchmetrics and its documented example; ranges, and gradients everywhere."""

import copy
import sys
import types
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as torchmetrics_lpips
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from conftest import real_home
from fewstep.errors import InputError
from fewstep.metrics.distances.perceptual import FeatureDistance, Lpips, resize_bilinear
from fewstep.metrics.extractors.resnet import ResNet56
from fewstep.metrics.extractors.trunks import TRUNKS


def images(*shape, seed=0):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) - 1


def weights(name):
    path = Path(real_home()) / "weights" / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    return load_file(path)


def in_order(heads):
    return [heads[f"lin{i}.model.1.weight"] for i in range(len(heads))]


def random_lpips(name="squeeze", *, size=None):
    generator = torch.Generator().manual_seed(0)
    trunk = TRUNKS[name]()
    trunk.draw(generator)
    heads = [torch.rand(channels, generator=generator) for channels in trunk.channels]
    return Lpips(trunk, heads, size=size)


def published_lpips(*, size=None):
    trunk = TRUNKS["squeeze"]()
    trunk.load_state_dict(weights("squeezenet1_1-features"))
    return Lpips(trunk, in_order(weights("lpips-squeeze-heads-v0.1")), size=size)


def random_features(*, size=None):
    network, generator = ResNet56(), torch.Generator().manual_seed(0)
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight, generator=generator)
    return FeatureDistance(lambda x: network.feature_maps(127.5 * (x + 1)), size=size)


KINDS = {"random": random_lpips, "published": published_lpips, "features": random_features}


@pytest.fixture(scope="module", params=KINDS)
def distance(request):
    return KINDS[request.param]()


# --- torchmetrics, whose LPIPS asks torchvision for the trunk: a stand-in, written out plainly


class Fire(nn.Module):
    def __init__(self, channels, few, half):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, few, 1)
        self.expand1x1 = nn.Conv2d(few, half, 1)
        self.expand3x3 = nn.Conv2d(few, half, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


def pool(width=3, *, up=False):
    return nn.MaxPool2d(kernel_size=width, stride=2, ceil_mode=up)


def their_squeezenet():
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(up=True),
        Fire(64, 16, 64), Fire(128, 16, 64), pool(up=True),
        Fire(128, 32, 128), Fire(256, 32, 128), pool(up=True),
        Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
    )  # fmt: skip


def their_alexnet():
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), pool(),
        nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), pool(),
        nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(), nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), pool(),
    )  # fmt: skip


def their_vgg16():
    layers, last = [], 3
    for out in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(last, out, 3, 1, 1), nn.ReLU()] if out else [pool(2)]
        last = out or last
    return nn.Sequential(*layers)


THEIRS = {
    "squeeze": ("squeezenet1_1", their_squeezenet),
    "alex": ("alexnet", their_alexnet),
    "vgg": ("vgg16", their_vgg16),
}


@pytest.fixture
def theirs(monkeypatch):
    """`theirs(name, trunk weights)`: torchmetrics' LPIPS with its own copy of the heads."""

    def build(name, state):
        entry, make = THEIRS[name]
        features = make()
        features.load_state_dict({k.removeprefix("features."): v for k, v in state.items()})
        models = types.SimpleNamespace(
            **{entry: lambda weights: types.SimpleNamespace(features=features)}
        )
        stub = types.SimpleNamespace(models=models)
        monkeypatch.setitem(sys.modules, "torchvision", stub)
        monkeypatch.setattr(torchmetrics_lpips, "_TORCHVISION_AVAILABLE", True)
        return torchmetrics_lpips._NoTrainLpips(net=name, pnet_rand=True)

    return build


@pytest.mark.parametrize("name", TRUNKS)
def test_equals_torchmetrics_with_its_heads_on_random_trunks(name, theirs):
    trunk = TRUNKS[name]()
    trunk.draw(torch.Generator().manual_seed(0))
    network = theirs(name, trunk.state_dict())
    ours = Lpips(trunk, [lin.model[-1].weight for lin in network.lins])
    a, b = images(3, 3, 50, 41), images(3, 3, 50, 41, seed=1)
    assert torch.allclose(ours(a, b), network(a, b).flatten(), rtol=1e-6, atol=0)


def test_equals_torchmetrics_with_published_weights(theirs):
    network = theirs("squeeze", weights("squeezenet1_1-features"))
    ours = published_lpips()
    for size in (32, 64, 100):
        a, b = images(4, 3, size, size), images(4, 3, size, size, seed=1)
        near = (a + 0.05 * b).clamp(-1, 1)
        for other in (b, near):
            assert torch.allclose(ours(a, other), network(a, other).flatten(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", TRUNKS)
def test_head_files_are_torchmetrics_own_and_not_negative(name):
    mine = weights(f"lpips-{name}-heads-v0.1")
    folder = Path(torchmetrics_lpips.__file__).parent / "lpips_models"
    their = torch.load(folder / f"{name}.pth", map_location="cpu")
    assert mine.keys() == their.keys()
    assert all(torch.equal(mine[key], their[key]) for key in mine)
    assert all((head >= 0).all() for head in mine.values())


def test_the_example_that_torchmetrics_documents():
    generator = torch.Generator().manual_seed(42)
    a = torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1
    b = torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1
    assert [round(d, 4) for d in published_lpips()(a, b).tolist()] == [0.1024, 0.0938]


# --- what a distance is


def test_zero_at_identical_symmetric_and_a_number_a_row(distance):
    a, b = images(4, 3, 32, 32), images(4, 3, 32, 32, seed=1)
    assert torch.equal(distance(a, a), torch.zeros(4))
    together = distance(a, b)
    assert together.shape == (4,)
    assert (together > 0).all()
    assert torch.allclose(together, distance(b, a), rtol=1e-5)
    alone = torch.cat([distance(x, y) for x, y in zip(a.split(1), b.split(1), strict=True)])
    assert torch.allclose(together, alone, rtol=1e-4)
    assert distance(a[:0], b[:0]).shape == (0,)


def test_more_noise_is_further(distance):
    a, noise = 0.5 * images(4, 3, 32, 32), images(4, 3, 32, 32, seed=1)
    means = [distance(a, a + level * noise).mean() for level in (0.01, 0.05, 0.2, 0.5)]
    assert means == sorted(means)


def test_the_sum_by_hand():
    a = torch.tensor([3.0, 4.0, 0.0, 0.0]).view(1, 2, 1, 2) / 4  # places (3, 0) and (4, 0)
    b = torch.tensor([0.0, 3.0, 1.0, 4.0]).view(1, 2, 1, 2) / 4  # places (0, 1) and (3, 4)
    # at length 1: (1, 0) - (0, 1) and (1, 0) - (0.6, 0.8); squares summed: 2 and 0.8
    found = FeatureDistance(lambda x: [x, -x])(a, b)
    assert found.item() == pytest.approx(2 * (2 + 0.8) / 2 / 2, rel=1e-6)


def test_grey_is_three_equal_channels():
    distance = random_lpips()
    a, b = images(2, 1, 32, 32), images(2, 1, 32, 32, seed=1)
    colour = distance(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
    assert torch.equal(distance(a, b), colour)
    with pytest.raises(InputError, match="1 or 3 channels, not 4"):
        distance(images(1, 4, 32, 32), images(1, 4, 32, 32))


# --- ranges


BYTES = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)


def test_integers_are_refused_with_a_hint(distance):
    for measure in (distance, distance.loss):
        for dtype in (torch.uint8, torch.int64, torch.bool):
            with pytest.raises(InputError, match=r"float images in \[-1, 1\], not .*127\.5 - 1"):
                measure(BYTES.to(dtype), images(2, 3, 32, 32))


def test_values_of_bytes_are_refused_and_named(distance):
    wrong = BYTES.float()
    wrong[0, 0, 0, :2] = torch.tensor([0.0, 255.0])
    for measure in (distance, distance.loss):
        for pair in ((wrong, wrong), (wrong / 127.5 - 1, wrong), (wrong, wrong / 127.5 - 1)):
            with pytest.raises(InputError, match=r"in \[-1, 1\].*in \[(0|-1), 255\]; divide by"):
                measure(*pair)


def test_measuring_is_strict_and_a_loss_bears_overshoot(distance):
    a, b = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    assert torch.equal(distance.loss(a, b), distance(a, b))
    distance(1.0005 * a, b)  # rounding
    with pytest.raises(InputError, match=r"these are in \[-1\.[45]\d*, 1\.[45]\d*\]; scale or"):
        distance(1.5 * a, b)
    assert distance.loss(1.5 * a, 10 * b).isfinite().all()
    with pytest.raises(InputError, match=r"in \[-1[67]\S*, 1[67]\S*\]; scale or"):
        distance.loss(a, 17 * b / b.abs().max())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_broken_student_is_for_the_trainer_and_no_measurement(distance, value):
    a, b = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    b[1, 2, 3, 4] = value
    for pair in ((a, b), (b, a)):
        with pytest.raises(InputError, match="nan|inf"):
            distance(*pair)
        assert distance.loss(*pair).isfinite().tolist() == [True, False]


def test_shapes_must_agree(distance):
    a = images(2, 3, 32, 32)
    for other in (a[:1], a[:, :1], a[..., :31], a[0]):
        with pytest.raises(InputError, match="of one shape"):
            distance(a, other)
    with pytest.raises(InputError, match="of one shape"):
        distance(a[0], a[0])


def test_heads_of_another_trunk_are_refused():
    trunk = TRUNKS["alex"]()
    heads = [torch.ones(1, c, 1, 1) for c in trunk.channels]
    Lpips(trunk, heads)
    for wrong in (heads[:4], heads[::-1], []):
        with pytest.raises(InputError, match="give the heads of that trunk"):
            Lpips(trunk, wrong)


# --- gradients


def full(value):
    return torch.full((2, 3, 32, 32), value)


PAIRS = {
    "noise": (images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)),
    "near": (0.9 * images(2, 3, 32, 32), 0.9 * images(2, 3, 32, 32) + 1e-3),
    "black and white": (full(-1.0), full(1.0)),
    "two greys": (full(0.0), full(0.1)),
    "noise and black": (images(2, 3, 32, 32), full(-1.0)),
}


def gradients(measure, a, b):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    measure(a, b).sum().backward()
    return a.grad, b.grad


@pytest.mark.parametrize("pair", PAIRS)
def test_images_that_differ_pull_on_each_other(distance, pair):
    for measure in (distance, distance.loss):
        for gradient in gradients(measure, *PAIRS[pair]):
            assert gradient.isfinite().all()
            assert (gradient.flatten(1).norm(dim=1) > 0).all()


@pytest.mark.parametrize("image", [full(-1.0), full(0.0), full(1.0), images(2, 3, 32, 32)])
def test_identical_images_are_at_rest(distance, image):
    for gradient in gradients(distance, image, image):
        assert torch.equal(gradient, torch.zeros_like(image))


@settings(max_examples=15, deadline=None)
@given(
    level=st.tuples(*2 * [st.floats(-1, 1, width=32)]),
    contrast=st.tuples(*2 * [st.sampled_from([0.0, 1e-6, 1e-3, 1.0])]),
    seed=st.integers(0, 1000),
)
def test_gradients_are_finite_anywhere(distance, level, contrast, seed):
    a, b = (
        (level[i] + contrast[i] * images(1, 3, 32, 32, seed=seed + i)).clamp(-1, 1)
        for i in range(2)
    )
    assert all(gradient.isfinite().all() for gradient in gradients(distance, a, b))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_are_finite_where_every_channel_is_zero(dtype):
    """There the original's, with its 1e-10 outside the root, are NaN (which a ReLU hides)."""
    distance = FeatureDistance(lambda x: [x.to(dtype)])
    a, b = torch.zeros(1, 3, 4, 4), images(1, 3, 4, 4, seed=1)
    assert distance(a, b).item() == pytest.approx(1 / 3, rel=1e-5)  # unit vectors from 0
    for gradient in (*gradients(distance, a, b), *gradients(distance, a, a)):
        assert gradient.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    a, b = (0.9 * images(1, 3, 4, 4, seed=seed).double().requires_grad_() for seed in (0, 1))
    kernel = images(5, 3, 3, 3, seed=2).double()
    smooth = FeatureDistance(lambda x: [x, F.conv2d(x, kernel).tanh()], size=6)
    assert torch.autograd.gradcheck(smooth.loss, (a, b))
    lpips = random_lpips().double()
    a, b = (0.9 * images(1, 3, 20, 20, seed=seed).double().requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lpips.loss, (a, b), fast_mode=True)


# --- as a part of other things


def test_a_module_that_holds_it_neither_saves_nor_trains_it():
    trunk = TRUNKS["squeeze"]()
    trunk.draw(torch.Generator().manual_seed(0))
    host = nn.ModuleDict({"lpips": Lpips(trunk, [torch.ones(c) for c in trunk.channels])})
    assert host.state_dict() == {}
    assert list(host.parameters()) == []
    host.load_state_dict({}, strict=True)
    a, b = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    single = host["lpips"](a, b)
    twin = copy.deepcopy(host).double()
    double = twin["lpips"](a, b)
    assert (single.dtype, double.dtype) == (torch.float32, torch.float64)
    assert torch.allclose(single.double(), double, rtol=1e-5)
    assert all(buffer.dtype == torch.float64 for buffer in twin.buffers())
    # the trunk that it was made of is whole, and no longer its own
    for weight in trunk.parameters():
        weight.zero_()
    assert len(trunk.state_dict()) == 50
    assert torch.equal(host["lpips"](a, b), single)


def test_half_precision_around_it_does_little():
    distance = random_lpips()
    a, b = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    exact = distance(a, b)
    assert torch.allclose(distance(a.bfloat16(), b.bfloat16()), exact, rtol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        found = distance(a, b)
    assert found.dtype == torch.float32
    assert torch.allclose(found, exact, rtol=0.02)


# --- sizes


def test_a_ramp_stays_a_ramp_when_it_grows():
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    grown = resize_bilinear(ramp, 16)
    expected = ((torch.arange(16) + 0.5) / 2 - 0.5).clamp(0, 7)  # centres of pixels
    assert torch.allclose(grown, expected.expand(1, 1, 16, 16))


def test_every_pixel_counts_when_it_shrinks():
    image = images(1, 3, 32, 24).requires_grad_()
    small = resize_bilinear(image, 4)
    assert small.shape == (1, 3, 4, 4)
    small.sum().backward()
    assert (image.grad > 0).all()
    assert torch.allclose(resize_bilinear(full(0.3), 5), torch.full((2, 3, 5, 5), 0.3))
    assert resize_bilinear(image, None) is image
    assert resize_bilinear(image[..., :24, :], 24).equal(image[..., :24, :])


@pytest.mark.parametrize("make", [random_lpips, random_features])
def test_size_is_the_same_as_resizing_before(make):
    a, b = images(2, 3, 32, 32), images(2, 3, 32, 32, seed=1)
    found = make(size=48)(a, b)
    assert torch.allclose(found, make()(resize_bilinear(a, 48), resize_bilinear(b, 48)), rtol=1e-4)
    with pytest.raises(InputError, match="size is 0"):
        make(size=0)


def test_images_too_small_for_the_trunk_can_be_resized():
    a, b = images(2, 1, 8, 8), images(2, 1, 8, 8, seed=1)
    with pytest.raises(InputError, match="8x8 are too small.*size=64"):
        random_lpips()(a, b)
    assert (random_lpips(size=64)(a, b) > 0).all()
