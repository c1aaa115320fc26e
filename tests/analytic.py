"""Exact denoisers: networks that know the data's distribution, in each native world.

Data are Gaussian, x0 ~ N(mean, spread²) in each coordinate, so that the posterior mean and the
probability-flow map are known in closed form.
"""

from dataclasses import dataclass

import torch

from fewstep.backbones import Backbone
from fewstep.denoiser import Denoiser
from fewstep.parametrization import EDM, Clean, Eps, Mixed, V, Velocity
from fewstep.pretrained.parametrizations import EDMBoundary, ScaledScore
from fewstep.process import VE, VP, Cosine, Flow, LinearBetas

MEAN, SPREAD = 0.3, 0.5
TABLE = LinearBetas().table
PROCESSES = [Flow(), VP(), VE(), Cosine(), Cosine(0.5), TABLE, LinearBetas(steps=100)]
PARAMETRIZATIONS = [
    *(kind(native) for kind in (Eps, V, Clean) for native in (TABLE, VP(), Cosine())),
    *(Velocity(native) for native in (Flow(), TABLE, VP())),
    EDM(0.5),
    EDMBoundary(0.5),
    ScaledScore(),
    Mixed(inputs=Eps(TABLE), outputs=EDM(0.5)),
    Mixed(inputs=EDM(0.5), outputs=V(VP())),
]


def posterior_mean(x_t, alpha, sigma, mean=MEAN, spread=SPREAD):
    """E[x0 | x_t] of the Gaussian."""
    gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
    return mean + gain * (x_t - alpha * mean)


def as_flow_map(x_t, alpha_t, sigma_t, alpha_s, sigma_s, mean=MEAN, spread=SPREAD):
    """Where the probability-flow ODE takes x_t: a Gaussian stays one, so it is affine."""
    scale_t = torch.sqrt(alpha_t**2 * spread**2 + sigma_t**2)
    scale_s = torch.sqrt(alpha_s**2 * spread**2 + sigma_s**2)
    return alpha_s * mean + scale_s / scale_t * (x_t - alpha_t * mean)


@dataclass(frozen=True)
class Config:
    name: str = "exact"


class Exact(Backbone):
    """The best network for Gaussian data, as a parametrization would have trained it."""

    def __init__(self, parametrization, shape=(2,), spread=SPREAD):
        super().__init__()
        self.parametrization = parametrization
        self.spread = spread
        self.config = Config()
        self.shape = shape
        self.classes = 0
        self.level_scale = 1.0

    def forward(self, x, level, *, level_s=None, cond=None):
        alpha, sigma, x_t = self.native(x, level.reshape(-1, *[1] * (x.ndim - 1)))
        x0 = posterior_mean(x_t, alpha, sigma, spread=self.spread)
        if isinstance(self.parametrization, Clean):
            return x0
        eps = (x_t - alpha * x0) / sigma
        a, b = self.parametrization.target_coefficients(alpha, sigma)
        return a * x0 + b * eps

    def native(self, x, level):
        """alpha, sigma and x_t in the world that the network was trained in."""
        inputs = getattr(self.parametrization, "inputs", self.parametrization)
        if isinstance(inputs, EDM):
            sigma = torch.exp(4 * level)
            return torch.ones_like(sigma), sigma, x * torch.sqrt(sigma**2 + 0.5**2)
        if isinstance(inputs, ScaledScore):
            sigma = 2 * torch.exp(level)
            return torch.ones_like(sigma), sigma, x
        native = inputs.native
        t = level / native.levels
        return native.alpha(t), native.sigma(t), x

    def features(self, x, level, *, cond=None):
        return [x]


def exact(process, parametrization, shape=(2,)):
    """That network under `process`; a parametrization without a native process gets `Flow`."""
    parametrization = parametrization.bind(Flow())
    return Denoiser(Exact(parametrization, shape), process, parametrization)


class OnPath(Exact):
    """The exact student of a consistency model: its x0 is where the probability-flow ODE ends."""

    def forward(self, x, level, *, level_s=None, cond=None):
        alpha, sigma, x_t = self.native(x, level.reshape(-1, *[1] * (x.ndim - 1)))
        one, none = torch.ones_like(alpha), torch.zeros_like(alpha)
        x0 = as_flow_map(x_t, alpha, sigma, one, none)
        a, b = self.parametrization.target_coefficients(alpha, sigma)
        return a * x0 + b * (x_t - alpha * x0) / sigma.clamp(min=1e-12)
