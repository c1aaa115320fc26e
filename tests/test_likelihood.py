"""Log-likelihoods by the probability flow against densities in closed form."""

import math
from dataclasses import dataclass

import pytest
import torch

from analytic import MEAN, SPREAD, as_flow_map, exact
from fewstep.backbones import Backbone
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.likelihood import (
    END_RATIO,
    PROCESS,
    flow_ends,
    log_likelihood,
    rademacher_probes,
)
from fewstep.noise import RowNoise
from fewstep.parametrization import EDM, Clean, Eps, V, Velocity
from fewstep.process import VE, VP, Cosine, Flow, LinearBetas

BITS = math.log(2)
TOLERANCE = 1e-3
"""In bits per dimension."""


def gaussian_bits(x, mean, covariance):
    """−log2 of a Gaussian's density at x (b, d), per dimension."""
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    return -normal.log_prob(x) / x.shape[1] / BITS


def flow_bits(denoiser, x, **settings):
    return -log_likelihood(denoiser, x, **settings).nats / x[0].numel() / BITS


@dataclass(frozen=True)
class Config:
    name: str = "posterior"


class Posterior(Backbone):
    """Predicts eps − x0 under `Flow` from the exact posterior mean of x0, a function of
    (x_t, alpha, sigma)."""

    def __init__(self, mean, shape):
        super().__init__()
        self.config, self.shape, self.classes, self.level_scale = Config(), shape, 0, 1.0
        self.mean = mean

    def forward(self, x, level, *, level_s=None, cond=None):
        sigma = (level / 1000).reshape(-1, 1)
        x0 = self.mean(x, 1 - sigma, sigma)
        # regular at both ends: eps − x0 = (x_t − x0)/sigma
        return (x - x0) / sigma

    def features(self, x, level, *, cond=None):
        return [x]


def posterior(mean, shape):
    return Denoiser(Posterior(mean, shape), Flow(), Velocity(Flow()))


COVARIANCE = torch.tensor(
    [[1.0, 0.8, 0.0], [0.8, 0.9, 0.05], [0.0, 0.05, 0.02]], dtype=torch.float64
)
CENTRE = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)


def correlated_mean(x, alpha, sigma):
    values, basis = torch.linalg.eigh(COVARIANCE)
    gain = alpha * values / (alpha**2 * values + sigma**2)
    return CENTRE + ((x - alpha * CENTRE) @ basis * gain) @ basis.T


CENTRES = torch.tensor([[0.7, 0.2], [-0.5, 0.4], [0.1, -0.8]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
WIDTH = 0.15


def mixture_mean(x, alpha, sigma):
    variance = alpha**2 * WIDTH**2 + sigma**2
    distance = (x[:, None] - alpha[..., None] * CENTRES).square().sum(2)
    share = torch.softmax(WEIGHTS.log() - 0.5 * distance / variance, dim=1)
    gain = (alpha * WIDTH**2 / variance)[..., None]
    means = CENTRES + gain * (x[:, None] - alpha[..., None] * CENTRES)
    return (share[..., None] * means).sum(1)


def start_density(denoiser, x, process=PROCESS):
    """Bits of the density that the exact, affine flow makes of the Gaussian at its start."""
    times = flow_ends(denoiser, process=process)
    alpha, sigma = process.alpha(times), process.sigma(times)
    low, high = (alpha[0], sigma[0]), (alpha[1], sigma[1])
    scale = alpha[0] * as_flow_map(torch.ones(1), *low, *high, mean=0.0)
    end = as_flow_map(alpha[0] * x, *low, *high)
    normal = torch.distributions.Normal(0.0, sigma[1])
    return -(normal.log_prob(end).mean(1) + scale.log()) / BITS


def samples(rows=16, size=1):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return MEAN + SPREAD * noise


@pytest.mark.parametrize(
    ("own", "parametrization", "solved"),
    [
        (Flow(), Velocity(Flow()), Flow()),
        (Flow(), Eps(Flow()), PROCESS),
        (Cosine(), V(Cosine()), Cosine()),
        (VP(), Eps(VP()), VP()),
        (VE(), EDM(0.5), VE()),
        (VE(), EDM(0.5), PROCESS),
        (LinearBetas(), Clean(LinearBetas()), PROCESS),
    ],
    ids=lambda part: type(part).__name__,
)
def test_it_is_the_density_of_a_gaussian(own, parametrization, solved):
    x, denoiser = samples(), exact(own, parametrization, shape=(1,))
    bits = flow_bits(denoiser, x, process=solved, tolerance=1e-5)
    assert (bits - start_density(denoiser, x, solved)).abs().max() < TOLERANCE
    # that of the data, with the noise of the end, but for what is left of the mean at the start
    end, start = flow_ends(denoiser, process=solved)
    ratio = solved.ratio(end).item()
    covariance = torch.eye(1, dtype=torch.float64) * (SPREAD**2 + ratio**2)
    data = gaussian_bits(x, torch.full((1,), MEAN, dtype=torch.float64), covariance)
    left = MEAN / solved.ratio(start) * (x - MEAN).abs()[:, 0] / SPREAD / BITS
    assert ((bits - data).abs() < TOLERANCE + left).all()
    lowest = own.ratio(torch.tensor(denoiser.span[0], dtype=torch.float64)).item()
    assert ratio == pytest.approx(max(END_RATIO, lowest), rel=1e-6)


def test_it_is_the_density_of_a_correlated_gaussian():
    normal = torch.distributions.MultivariateNormal(CENTRE, COVARIANCE)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = normal.sample((8,))
    noisy = COVARIANCE + END_RATIO**2 * torch.eye(3, dtype=torch.float64)
    bits = flow_bits(posterior(correlated_mean, (3,)), x, tolerance=1e-5)
    assert (bits - gaussian_bits(x, CENTRE, noisy)).abs().max() < TOLERANCE


def test_it_is_the_density_of_a_mixture():
    x = torch.cat([CENTRES, torch.tensor([[0.0, 0.0], [0.1, 0.3], [-0.6, 0.6]]).double()])
    variance = WIDTH**2 + END_RATIO**2
    parts = [
        torch.distributions.MultivariateNormal(c, variance * torch.eye(2).double()) for c in CENTRES
    ]
    density = torch.stack([part.log_prob(x) for part in parts], 1) + WEIGHTS.log()
    wanted = -density.logsumexp(1) / 2 / BITS
    bits = flow_bits(posterior(mixture_mean, (2,)), x, tolerance=1e-5)
    assert (bits - wanted).abs().max() < TOLERANCE


def test_probes_have_no_bias_and_do_not_depend_on_the_batch():
    """Rows with the same x0 and probes of their own scatter around the exact value."""
    denoiser = posterior(correlated_mean, (3,))
    x = (CENTRE + torch.tensor([0.5, 0.2, -0.1]).double()).repeat(400, 1)
    noise = RowNoise(range(400))
    probes = rademacher_probes(noise, 2, x)
    assert torch.equal(rademacher_probes(RowNoise([7]), 2, x[:1])[:, 0], probes[:, 7])
    bits = flow_bits(denoiser, x, probes=probes)
    error = bits.std() / 20
    assert 0.001 < error < 0.1
    assert (bits.mean() - flow_bits(denoiser, x[:1])[0]).abs() < 3 * error


def test_float32_is_enough():
    x, denoiser = samples().float(), exact(Flow(), Velocity(Flow()), shape=(1,))
    difference = flow_bits(denoiser, x, tolerance=1e-5) - start_density(denoiser, x.double())
    assert difference.abs().max() < TOLERANCE


def test_what_has_no_likelihood_is_refused():
    plain = exact(Flow(), Velocity(Flow()), shape=(1,))
    with pytest.raises(InputError, match="a flow map has no likelihood"):
        log_likelihood(plain.replace(is_flow_map=True), samples())
    faulty = posterior(lambda x, alpha, sigma: x / 0, (1,))
    with pytest.raises(InputError, match="not finite at t = 0.0012"):
        log_likelihood(faulty, samples())
