"""A mixture of Gaussians in the plane, whose denoiser is known in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.backbones import Backbone
from fewstep.condition import Condition
from fewstep.data.toys import GaussianMixture
from fewstep.denoiser import Denoiser
from fewstep.parametrization import Clean
from fewstep.process import Process


def three_gaussians() -> GaussianMixture:
    """Three Gaussians of std 0.1 in [-1, 1]², of weights 0.5, 0.3 and 0.2."""
    means = torch.tensor([[-0.6, -0.55], [0.75, -0.1], [-0.1, 0.75]], dtype=torch.float64)
    return GaussianMixture(means, 0.1, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))


def exact_denoiser(
    mixture: GaussianMixture, process: Process, span: tuple[float, float]
) -> Denoiser:
    """The denoiser E[x0 | x_t] of points of `mixture` under `process`, used within `span`."""
    return Denoiser(_Exact(mixture, process), process, Clean(process), span=span)


@dataclass(frozen=True)
class _ExactConfig:
    """There is nothing to set."""


class _Exact(Backbone):
    """Computes E[x0 | x_t]; its levels are those of `process`, whose x_t it sees."""

    def __init__(self, mixture: GaussianMixture, process: Process) -> None:
        super().__init__()
        self.config = _ExactConfig()
        self.shape = (mixture.means.shape[1],)
        self.classes = 0
        self.level_scale = 1.0
        self.mixture = mixture
        self.process = process

    def forward(
        self,
        x: Tensor,
        level: Tensor,
        *,
        level_s: Tensor | None = None,
        cond: Condition | None = None,
    ) -> Tensor:
        alpha, sigma = self.process.at(level / self.process.levels, like=x)
        return self.mixture.denoise(x, alpha, sigma)

    def features(self, x: Tensor, level: Tensor, *, cond: Condition | None = None) -> list[Tensor]:
        return [x]
