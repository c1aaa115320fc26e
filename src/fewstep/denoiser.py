"""A backbone that knows where the noise is: teacher, student, fake score and EMA target alike.

`Denoiser.forward` is the one door to a network: coefficients, casts and autocast happen there, and
nowhere else. It returns a `Prediction`, one network output seen as x0, eps, v, score or velocity.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.backbones import Backbone, with_two_times
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.parametrization import Parametrization
from fewstep.process import Process, as_times

SPAN_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Prediction:
    """What a network said of `x_t` at `t`; the rest is derived when asked for.

    `alpha`, `sigma` are shaped against `x_t`; `output` is raw, in float32 or better.
    """

    x_t: Tensor
    t: Tensor
    output: Tensor
    process: Process
    parametrization: Parametrization
    alpha: Tensor
    sigma: Tensor

    @property
    def x0(self) -> Tensor:
        """The image expected behind x_t: c_skip·x_t + c_out·output."""
        skip, out = self.parametrization.skip_out(self.alpha, self.sigma)
        return skip * self.x_t + out * self.output

    @property
    def eps(self) -> Tensor:
        """The noise expected in x_t: (alpha·output − a·x_t)/D."""
        a, b = self.parametrization.row(self.alpha, self.sigma)
        return (self.alpha * self.output - a * self.x_t) / (self.alpha * b - self.sigma * a)

    @property
    def v(self) -> Tensor:
        """(alpha·eps − sigma·x0)/√(alpha² + sigma²)."""
        norm = torch.sqrt(self.alpha.square() + self.sigma.square())
        return (self.alpha * self.eps - self.sigma * self.x0) / norm

    @property
    def score(self) -> Tensor:
        """The gradient of ln p(x_t): −eps/sigma."""
        return -self.eps / self.sigma

    @property
    def velocity(self) -> Tensor:
        """dx_t/dt along the probability-flow ODE: alpha'·x0 + sigma'·eps."""
        alpha_rate, sigma_rate = self.process.rates_at(self.t, like=self.x_t)
        return alpha_rate * self.x0 + sigma_rate * self.eps


class Denoiser(nn.Module):
    """`backbone` under `process`, read through `parametrization`.

    `autocast` is the type that the backbone computes in (bf16 say); None leaves it alone.
    `is_flow_map` says that it was trained as a flow map: samplers tell it where each step goes.
    """

    def __init__(
        self,
        backbone: Backbone,
        process: Process,
        parametrization: Parametrization,
        *,
        autocast: torch.dtype | None = None,
        is_flow_map: bool = False,
    ) -> None:
        super().__init__()
        self.backbone: Backbone = backbone
        self.is_flow_map = is_flow_map
        self.process = process
        self.parametrization = parametrization
        self.autocast = autocast
        self.span = _span(process, parametrization)

    def forward(
        self,
        x_t: Tensor,
        t: Tensor | float,
        *,
        s: Tensor | float | None = None,
        cond: Condition | None = None,
    ) -> Prediction:
        """Ask the network about `x_t` (b, ...) at `t`; `s` is a flow map's destination, s < t."""
        scale, level = self.network_inputs(t, x_t)
        level_s = None if s is None else self.network_inputs(s, x_t)[1]
        with self.autocast_context(x_t):
            output = self.backbone(scale * x_t, level, level_s=level_s, cond=cond)
        return self.interpret(x_t, t, output)

    def interpret(self, x_t: Tensor, t: Tensor | float, output: Tensor) -> Prediction:
        """A raw `output` about `x_t` at `t`, with its meaning."""
        time = as_times(t, x_t)
        alpha, sigma = self.process.at(time, like=x_t)
        output = output.to(alpha.dtype)
        return Prediction(x_t, time, output, self.process, self.parametrization, alpha, sigma)

    def network_inputs(self, t: Tensor | float, like: Tensor) -> tuple[Tensor, Tensor]:
        """What x_t is multiplied with for the network, shaped against `like`, and its level."""
        alpha, sigma = self.process.at(t, like=like)
        level = self.parametrization.level(alpha, sigma).flatten()
        if self.parametrization.logarithmic:
            level = level * self.backbone.level_scale
        return self.parametrization.scale(alpha, sigma), level

    def features(
        self, x_t: Tensor, t: Tensor | float, *, cond: Condition | None = None
    ) -> list[Tensor]:
        """The backbone's inner activations at `x_t`, in float32, for adversarial heads."""
        scale, level = self.network_inputs(t, x_t)
        with self.autocast_context(x_t):
            layers = self.backbone.features(scale * x_t, level, cond=cond)
        return [layer.to(scale.dtype) for layer in layers]

    def under(self, process: Process) -> "Denoiser":
        """The same weights under another clock; the modules are shared, not copied."""
        return Denoiser(
            self.backbone,
            process,
            self.parametrization,
            autocast=self.autocast,
            is_flow_map=self.is_flow_map,
        )

    def as_flow_map(self) -> "Denoiser":
        """A network with two times in place of this one: it is to be told where to go."""
        backbone = with_two_times(self.backbone)
        return Denoiser(
            backbone, self.process, self.parametrization, autocast=self.autocast, is_flow_map=True
        )

    def autocast_context(self, x: Tensor) -> AbstractContextManager[object]:
        """The type that the network computes in, for what is called inside."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(x.device.type, self.autocast)


def _span(process: Process, parametrization: Parametrization) -> tuple[float, float]:
    ratios = torch.tensor(parametrization.ratios, dtype=torch.float64)
    low, high = process.time(ratios).tolist()
    return low, high


def check_times(times: Tensor, span: tuple[float, float]) -> None:
    """Refuse times at which the network was never trained, beyond a tolerance of 1e-5."""
    low, high = span
    lowest, highest = float(times.min()), float(times.max())
    if lowest < low - SPAN_TOLERANCE or highest > high + SPAN_TOLERANCE:
        raise InputError(
            f"times run from {highest:.6g} down to {lowest:.6g}, but this network was trained for "
            f"t in [{low:.6g}, {high:.6g}]; start the grid at the span's end"
        )
