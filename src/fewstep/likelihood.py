"""Exact log-likelihood of samples by the probability-flow ODE, for teachers under any process.

A denoiser's probability flow dx/dt = velocity(x, t) carries a sample x0 to noise, and ln p changes
on the way by the divergence of the velocity:

    ln p(x0) = ln N(x_1; 0, sigma(1)²·I) + ∫ div velocity(x_t, t) dt + d·ln alpha(t₀)

from t₀ with little noise, where x = alpha(t₀)·x0, to the time at which sampling starts, from that
Gaussian. The last term is the change of units from x to x0. The flow is the same under every
process, but for a factor of x and the pace of t.
Chen et al. 2018, arXiv:1806.07366; Grathwohl et al. 2019, arXiv:1810.01367; Song et al. 2021,
arXiv:2011.13456.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from fewstep.backbones.derivatives import value_and_tangent
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.noise import RowNoise
from fewstep.process import Cosine, Process

END_RATIO = 0.002
"""sigma/alpha at which the flow ends: about the standard deviation 1/(127.5·√12) = 0.0023 of the
uniform noise that dequantises 8-bit images, and EDM's lowest level."""
START_RATIO = 1000.0
"""sigma/alpha at which the flow starts for networks without a velocity where alpha is 0."""
TOLERANCE = 1e-4
"""Error of a step, in units of pixel values and nats per dimension; the mean of images of a trained
network is then about 0.004 bits from that at 1e-5, which takes four times as long."""
MAX_EVALUATIONS = 20_000
PROCESS = Cosine()
"""The process under which flows are solved: tables have kinks, and `VE` takes more steps."""


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihood of a batch."""

    nats: Float64[Tensor, " b"]
    """ln p(x0 | condition) of each row."""
    evaluations: int
    """Evaluations of the velocity of each row, each with one derivative for every probe, or every
    dimension if the divergence is exact."""


@torch.no_grad()
def log_likelihood(
    denoiser: Denoiser,
    x0: Float[Tensor, "b *shape"],
    *,
    cond: Condition | None = None,
    probes: Float[Tensor, "k b *shape"] | None = None,
    tolerance: float = TOLERANCE,
    end_ratio: float = END_RATIO,
    process: Process = PROCESS,
) -> LogLikelihood:
    """ln p(x0) under the flow of `denoiser`; see the module.

    The network computes in the type of `x0`, float32 or float64; states are float64. The divergence
    is exact, by one derivative for each dimension, or the mean over `probes` z of zᵀ·Jacobian·z,
    which has no bias if E zzᵀ is the identity (Hutchinson 1989). Each step of Dormand and Prince's
    method (RK45) has an error of about `tolerance` in the root mean square of all values, and in
    nats per dimension, over the batch. The flow ends at sigma/alpha = `end_ratio`, or at the data
    end of the network's span if that has more noise, and is solved under `process`.

    Raises: InputError for a flow map, values that are not finite, and a tolerance that the solver
    does not reach.
    """
    if denoiser.is_flow_map:
        raise InputError("a flow map has no likelihood: its steps jump, without a velocity between")
    low, high = flow_ends(denoiser, end_ratio, process)
    flow = _Flow(denoiser.under(process), x0, cond, probes)
    alpha, sigma = process.alpha(low).item(), process.sigma(high).item()
    states, change = flow.solve(alpha * x0.double(), low.item(), high.item(), tolerance)
    size = states[0].numel()
    prior = -0.5 * (states / sigma).square().flatten(1).sum(1)
    prior = prior - size * math.log(sigma * math.sqrt(2 * math.pi))
    nats = prior + change + size * math.log(alpha)
    return LogLikelihood(nats.cpu(), flow.evaluations)


def rademacher_probes(noise: RowNoise, count: int, like: Tensor) -> Float[Tensor, "k b *shape"]:
    """`count` probes of ±1 for each row of `like` (b, ...), from the row's own noise."""
    draws = torch.stack([noise.like(like) for _ in range(count)])
    return torch.where(draws < 0, -1.0, 1.0).to(like)


class _Flow:
    """The ODE of a batch: its state is x_t, and the change of ln p so far."""

    def __init__(
        self, denoiser: Denoiser, x0: Tensor, cond: Condition | None, probes: Tensor | None
    ) -> None:
        self.denoiser = denoiser
        self.like = x0
        self.cond = cond
        self.probes = probes
        self.evaluations = 0
        # in these units, the root mean square error of the whole state has as much of the error of
        # ln p per dimension as of the error of x
        self._unit = math.sqrt(x0[0].numel())

    def solve(self, x: Tensor, low: float, high: float, tolerance: float) -> tuple[Tensor, Tensor]:
        """The state at `high`, and the change of ln p, of the state `x` at `low`."""
        from scipy.integrate import solve_ivp  # which takes 0.2 s to import

        first = np.concatenate([x.cpu().numpy().ravel(), np.zeros(len(x))])
        relative = np.full(first.shape, tolerance)
        relative[x.numel() :] = 1e-13  # of ln p, the absolute error counts
        result: Any = solve_ivp(
            self._slopes, (low, high), first, t_eval=[high], rtol=relative, atol=tolerance
        )
        if not result.success:
            raise InputError(
                f"the flow cannot be solved to a tolerance of {tolerance:g}: {result.message}; "
                "raise the tolerance"
            )
        return self._split(result.y[:, -1])

    def _split(self, state: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        values = torch.from_numpy(state).to(self.like.device)
        size = self.like.numel()
        return values[:size].reshape(self.like.shape), self._unit * values[size:]

    def _slopes(self, t: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        x = self._split(state)[0].to(self.like.dtype)
        velocity, divergence = self._velocity(x, float(t))
        slopes = torch.cat([velocity.double().flatten(), divergence.double() / self._unit])
        if not bool(slopes.isfinite().all()):
            raise InputError(f"the network's velocity is not finite at t = {t:.6g}")
        self.evaluations += 1
        if self.evaluations > MAX_EVALUATIONS:
            raise InputError(
                f"the flow needs more than {MAX_EVALUATIONS:,} evaluations: raise the tolerance"
            )
        return slopes.cpu().numpy()

    def _velocity(self, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The velocity (b, ...) at `t`, and its divergence (b,)."""
        at = self.denoiser.coefficients(t, x)

        def velocity(x: Tensor) -> Tensor:
            return self.denoiser(x, at, cond=self.cond).velocity

        value, divergence = x, torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for direction in self._directions(x):
            value, tangent = value_and_tangent(velocity, (x,), (direction,))
            divergence += (direction * tangent).double().flatten(1).sum(1)
        return value, divergence if self.probes is None else divergence / len(self.probes)

    def _directions(self, x: Tensor) -> Iterator[Tensor]:
        """The probes, or the axes."""
        if self.probes is not None:
            yield from self.probes
            return
        for i in range(x[0].numel()):
            axis = torch.zeros_like(x)
            axis.view(len(x), -1)[:, i] = 1
            yield axis


def flow_ratios(denoiser: Denoiser, end_ratio: float = END_RATIO) -> Float64[Tensor, "2"]:
    """sigma/alpha at which the flow ends and starts; the start is infinite where alpha is 0."""
    ratios = denoiser.process.ratio(torch.tensor(denoiser.span, dtype=torch.float64))
    return torch.stack([ratios[0].clamp(min=end_ratio), ratios[1]])


def flow_ends(
    denoiser: Denoiser, end_ratio: float = END_RATIO, process: Process = PROCESS
) -> Float64[Tensor, "2"]:
    """The times of `process` at which the flow of `denoiser` ends and starts."""
    ratios = flow_ratios(denoiser, end_ratio)
    times = process.time(ratios)
    like = torch.zeros(1, 1, dtype=torch.float64)
    factors = denoiser.under(process).coefficients(times[1].item(), like).velocity
    if not all(bool(factor.isfinite()) for factor in factors):
        times = process.time(ratios.clamp(max=START_RATIO))
    return times
