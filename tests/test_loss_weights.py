"""Weights mean what their papers say, whatever the network predicts."""

import math

import pytest
import torch

from fewstep.backbones import MLPConfig
from fewstep.batching import Batches, ImageStream
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.loss_weights import P2, Learned, MinSnr, Snr, Uncertainty, Unweighted
from fewstep.losses import squared_error
from fewstep.methods.base import Task
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.optimizers import FitConfig, PlayerConfig
from fewstep.parametrization import EDM, Clean, Eps, V, Velocity
from fewstep.process import VP, Cosine, Flow, LinearBetas
from fewstep.sample_spec import SampleSpec
from fewstep.trainer import Training

SPEC = SampleSpec((2,))


def network(process, parametrization):
    return Denoiser(MLPConfig(width=8).build(shape=(2,)), process, parametrization)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", [Eps, V, Velocity, Clean, EDM])
def test_weights_are_those_of_the_papers(kind):
    """On DDPM's 1,000 steps, whose ratios of signal to noise are computed here from its betas."""
    table = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    steps = torch.tensor([0, 10, 100, 400, 700, 999])
    ratio = table[steps] / (1 - table[steps])
    denoiser = network(LinearBetas(), kind())
    x0, eps = normal(6, 2, seed=1), normal(6, 2, seed=2)
    t = steps.double() / 999
    prediction = denoiser.interpret(denoiser.process.add_noise(x0, eps, t), t, normal(6, 2, seed=3))
    error = squared_error(prediction.output, prediction.target(x0, eps))
    eps_error, x0_error = squared_error(prediction.eps, eps), squared_error(prediction.x0, x0)
    wanted = {
        Unweighted(): error,
        Snr(): eps_error,
        MinSnr(gamma=2.0): ratio.clamp(max=2) * x0_error,
        P2(): eps_error / (1 + ratio),
        P2(k=0.5, gamma=2.0): eps_error / (0.5 + ratio) ** 2,
    }
    for weight, loss in wanted.items():
        factor = torch.as_tensor(weight(prediction.coefficients)).flatten()
        torch.testing.assert_close(factor * error, loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("process", [Flow(), VP(), Cosine()], ids=lambda p: type(p).__name__)
def test_weights_are_finite_where_there_is_no_noise_or_no_image(process):
    for kind in (Eps, V, Velocity, EDM, Clean):
        ends = torch.tensor([0.0, 1.0 if kind in (V, Velocity, Clean) else 0.9])
        at = network(process, kind()).coefficients(ends, torch.zeros(2, 2))
        weights = [P2(), P2(gamma=0.5), MinSnr()] + [Snr()] * (kind is not Clean)
        for weight in weights:
            assert torch.as_tensor(weight(at)).isfinite().all(), (kind, weight)


def test_settings_are_checked():
    for build in (lambda: P2(k=0.0), lambda: P2(gamma=-1.0), lambda: MinSnr(gamma=math.nan)):
        with pytest.raises(InputError):
            build()


def test_uncertainty_learns_the_expected_error_of_each_level():
    """That of a network whose output is 0, on x0 of standard deviation 3:
    E[(alpha·eps − sigma·x0)²] = alpha² + 9·sigma²."""
    network, generator = Uncertainty(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        t = torch.rand(1024, generator=generator)
        alpha, sigma = VP().alpha(t)[:, None], VP().sigma(t)[:, None]
        eps, x0 = (torch.randn(1024, 8, generator=generator) for _ in range(2))
        error = squared_error(alpha * eps, sigma * 3 * x0)
        optimizer.zero_grad()
        network.loss(error, torch.log(sigma / alpha).flatten()).mean().backward()
        optimizer.step()
        schedule.step()
    t = torch.linspace(0.02, 0.98, 25)
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    wanted = torch.log(alpha**2 + 9 * sigma**2)
    assert wanted.max() - wanted.min() > 2
    found = network(torch.log(sigma / alpha))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.1)


def test_the_learned_weight_divides_the_error_by_its_expectation():
    """Of a student that does not learn: its weighted loss becomes 1."""
    method = Denoise(DenoiseConfig(weight=Learned()), Task(network(VP(), V()), SPEC))
    players = {"student": PlayerConfig(lr=1e-30), "uncertainty": PlayerConfig(lr=0.05)}
    config = FitConfig(steps=30, batch=512, players=players)
    images = ImageStream(3 * normal(4096, 2).float(), None)
    training = Training(method, Batches({"images": images}, SPEC, batch=512, seed=0), config)
    logs = [training.advance().numbers for _ in range(30)]
    assert logs[0]["student/loss"] == logs[0]["student/error"] > 5
    assert logs[-1]["student/loss"] == pytest.approx(1, abs=0.15)
    assert logs[-1]["student/error"] > 5
    assert not any("uncertainty" in name for name, _ in training.generator().named_modules())


def test_uncertainty_starts_at_no_weight_and_takes_every_level():
    levels = torch.tensor([-math.inf, -3.0, 0.0, 4.0, math.inf])
    network = Uncertainty()
    assert torch.equal(network(levels), torch.zeros(5))
    torch.nn.init.normal_(network.layer.weight)
    assert network(levels).isfinite().all()
