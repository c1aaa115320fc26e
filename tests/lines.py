"""A coupling known in closed form, and the network that is exact on its lines.

The probability flow from N(0, 1) to N(MEAN, SPREAD²) takes noise z to MEAN + SPREAD·z: the lines
between them never cross, so a velocity that is right on each of them exists and is straight.
"""

import torch

from analytic import MEAN, SPREAD, Exact
from fewstep.batching import Batches
from fewstep.denoiser import Denoiser
from fewstep.methods.batch import PairBatch
from fewstep.parametrization import EDM, Velocity
from fewstep.process import VE, Flow
from fewstep.sample_spec import SampleSpec

SHAPE = (2, 3)
SPEC = SampleSpec(SHAPE)


class OnLines(Exact):
    """Knows the line that x_t is on; keeps the times that it was asked at."""

    asked: list

    def forward(self, x, level, *, level_s=None, cond=None):
        alpha, sigma, x_t = self.native(x, level.reshape(-1, *[1] * (x.ndim - 1)))
        self.asked.append((sigma / (alpha + sigma)).flatten())
        noise = (x_t - alpha * MEAN) / (alpha * SPREAD + sigma)
        a, b = self.parametrization.target_coefficients(alpha, sigma)
        return a * (MEAN + SPREAD * noise) + b * noise


def on_lines(process=None, parametrization=None):
    """The exact student, under any clock."""
    process, parametrization = process or Flow(), parametrization or Velocity(Flow())
    network = OnLines(parametrization, SHAPE)
    network.asked = []
    return Denoiser(network, process, parametrization)


def ve():
    return on_lines(VE(), EDM())


class Coupled:
    """A stream of such pairs."""

    def __len__(self):
        return 1000

    def rows(self, index, coin, device):
        noise = torch.randn(len(index), *SHAPE, generator=torch.Generator().manual_seed(7))
        return PairBatch(noise, MEAN + SPREAD * noise, None)


def batch(rows=400):
    (only,) = Batches({"pairs": Coupled()}, SPEC, batch=rows, seed=0).step(0)
    only.begin("student", 0)
    return only
