import pytest
import torch
from safetensors.torch import save_file

import toy
from analytic import exact
from fewstep import losses, metrics
from fewstep.errors import InputError
from fewstep.losses import (
    Features,
    Lpips,
    PseudoHuber,
    SquaredError,
    bind_classifier,
    squared_error,
)
from fewstep.methods.base import Task
from fewstep.methods.kstep import Kstep, KstepConfig
from fewstep.metrics.extractors.classifier import classifier_for
from fewstep.metrics.extractors.trunks import TRUNKS
from fewstep.parametrization import Velocity
from fewstep.process import Flow


def test_square_error_is_the_mean_over_a_row():
    a = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]])
    assert SquaredError()(a, torch.zeros_like(a)).tolist() == [2.5, 0.0]


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


@pytest.fixture
def squeeze(home):
    """LPIPS with random weights, in files of the published names."""
    trunk = TRUNKS["squeeze"]()
    trunk.draw(torch.Generator().manual_seed(0))
    heads = [torch.rand(c, generator=torch.Generator().manual_seed(1)) for c in trunk.channels]
    folder = home / "weights"
    folder.mkdir(parents=True)
    save_file(trunk.state_dict(), folder / "squeezenet1_1-features.safetensors")
    told = {f"lin{i}.model.1.weight": head.view(1, -1, 1, 1) for i, head in enumerate(heads)}
    save_file(told, folder / "lpips-squeeze-heads-v0.1.safetensors")
    losses._lpips.cache_clear()
    yield metrics.Lpips(trunk, heads)
    losses._lpips.cache_clear()


def images(n=3, channels=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, size, size, generator=generator) * 2 - 1


def test_lpips_is_that_of_the_published_files_and_a_share_of_mse(squeeze):
    a, b = images(), images(seed=1)
    plain = squeeze(a, b)
    torch.testing.assert_close(Lpips()(a, b), plain)
    torch.testing.assert_close(Lpips(mse=0.5)(a, b), plain + 0.5 * squared_error(a, b))
    assert not torch.allclose(Lpips(size=64)(a, b), plain)


def test_a_student_may_overshoot_and_gets_a_gradient(squeeze):
    a = (1.5 * images()).requires_grad_()
    Lpips()(a, images(seed=1)).sum().backward()
    assert a.grad is not None and a.grad.isfinite().all() and float(a.grad.abs().sum()) > 0
    with pytest.raises(InputError, match=r"takes images in \[-1, 1\]"):
        Lpips()(127 * images() + 127, images())


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory):
    labels = torch.arange(200) % 2
    bright = (labels.view(-1, 1, 1, 1) * 120 + torch.randint(0, 100, (200, 1, 8, 8))).byte()
    cache = tmp_path_factory.mktemp("cache")
    classifier_for(bright, labels, fingerprint="a", cache=cache)
    return metrics.classifier_file("a", cache)


def test_features_of_a_classifier_are_its_maps_unweighted(classifier_file):
    a, b = images(channels=1, size=8), images(channels=1, size=8, seed=1)
    network = metrics.read_classifier(classifier_file)

    def feature_maps(x):
        found = network.feature_maps((x + 1) * 127.5)
        return [m / (1e-8 + m.square().sum(1, keepdim=True)).sqrt() for m in found]

    wanted = sum(
        (u - v).square().mean((1, 2, 3))
        for u, v in zip(feature_maps(a), feature_maps(b), strict=True)
    )
    distance = Features(weights=str(classifier_file))
    torch.testing.assert_close(distance(a, b), wanted)
    a.requires_grad_()
    (distance(a, b).sum() + distance(a, a.detach()).sum()).backward()
    assert a.grad is not None and a.grad.isfinite().all() and float(a.grad.abs().sum()) > 0


def test_features_without_a_classifier_say_what_is_missing():
    with pytest.raises(InputError, match="has no weights"):
        Features()(images(), images())
    with pytest.raises(InputError, match="unknown extractor 'squeeze'; did you mean"):
        Features(extractor="squeeze")(images(), images())


def test_a_configs_classifier_is_bound_once_it_is_needed(tmp_path):
    def never():
        raise AssertionError("nobody asked")

    for config in (KstepConfig(), KstepConfig(loss=Features(extractor="squeezenet"))):
        assert bind_classifier(config, never) == config
    bound = bind_classifier(KstepConfig(k=2, loss=Features(mse=1.0)), lambda: tmp_path)
    assert bound == KstepConfig(k=2, loss=Features(mse=1.0, weights=str(tmp_path)))


@pytest.mark.parametrize("loss", [Lpips(), Features()])
def test_a_velocity_has_no_look(loss):
    with pytest.raises(InputError, match='method.on = "x0"'):
        Kstep(KstepConfig(loss=loss), Task(exact(Flow(), Velocity(), (2,)), toy.SPEC))
