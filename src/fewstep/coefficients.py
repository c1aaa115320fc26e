"""alpha, sigma and everything that follows from them at given times, computed when it is used."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from fewstep.parametrization import Parametrization
from fewstep.process import Process, broadcast_to

Pair = tuple[Tensor, Tensor]


class Coefficients:
    """alpha, sigma and all that follows from them at given times, each computed at its first use.

    `x0`, `eps` and `velocity` are pairs (p, q) that make them from a network's input and output:
    p·x_t + q·output. With one time per row, values have shape (b, 1, ...), to multiply a batch;
    those of `tabulate` are numbers: tensors without dimensions, on the CPU.
    """

    def __init__(
        self,
        process: Process,
        parametrization: Parametrization,
        t: Tensor,
        alpha: Tensor,
        sigma: Tensor,
    ) -> None:
        self.process = process
        self.parametrization = parametrization
        self.t = t
        self.alpha = alpha
        self.sigma = sigma

    @cached_property
    def scale(self) -> Tensor:
        """Factor of x_t at the network's input."""
        return self.parametrization.scale(self.alpha, self.sigma)

    @cached_property
    def level(self) -> Tensor:
        """Noise level, before a backbone's `level_scale`."""
        return self.parametrization.level(self.alpha, self.sigma)

    @cached_property
    def log_ratio(self) -> Tensor:
        """ln(sigma/alpha)."""
        return torch.log(self.sigma / self.alpha)

    @cached_property
    def target_coefficients(self) -> Pair:
        """(a, b): the output estimates a·x0 + b·eps."""
        return self.parametrization.target_coefficients(self.alpha, self.sigma)

    @cached_property
    def x0(self) -> Pair:
        """(c_skip, c_out)."""
        return self.parametrization.skip_out(self.alpha, self.sigma)

    @cached_property
    def eps(self) -> Pair:
        """(−a, alpha)/D."""
        a, b = self.target_coefficients
        d = self.alpha * b - self.sigma * a
        return -a / d, self.alpha / d

    @cached_property
    def rates(self) -> Pair:
        """alpha' and sigma', the derivatives in time."""
        alpha_rate, sigma_rate = self.process.rates(self.t)
        return broadcast_to(alpha_rate, self.alpha), broadcast_to(sigma_rate, self.alpha)

    @cached_property
    def diffusion(self) -> Tensor:
        """g², the variance that the process's SDE adds in a unit of time; infinite at alpha = 0.

        It is 2·sigma²·d ln(sigma/alpha)/dt: VP's beta, and d(sigma²)/dt under VE.  Song et al.
        2021, arXiv:2011.13456.
        """
        alpha_rate, sigma_rate = self.rates
        return 2 * self.sigma * (sigma_rate - self.sigma * alpha_rate / self.alpha)

    @cached_property
    def velocity(self) -> Pair:
        """alpha'·x0 + sigma'·eps, with the pairs of x0 and eps."""
        alpha_rate, sigma_rate = self.rates
        (skip, out), (p, q) = self.x0, self.eps
        return alpha_rate * skip + sigma_rate * p, alpha_rate * out + sigma_rate * q


class _Table(Coefficients):
    """The coefficients at several times, in float64; `column` casts them."""

    def __init__(
        self, process: Process, parametrization: Parametrization, t: Tensor, dtype: torch.dtype
    ) -> None:
        super().__init__(process, parametrization, t, process.alpha(t), process.sigma(t))
        self.dtype = dtype
        self._columns: dict[str, tuple[tuple[Tensor, ...], ...]] = {}

    def column(self, name: str) -> tuple[tuple[Tensor, ...], ...]:
        """The numbers `name` of all times, or those of both parts of a pair; cast at first use."""
        if name not in self._columns:
            values = getattr(self, name)
            values = values if isinstance(values, tuple) else (values,)
            self._columns[name] = tuple(value.to(self.dtype).unbind() for value in values)
        return self._columns[name]


class _Entry(Coefficients):
    """The coefficients at one time of a table, as numbers."""

    def __init__(self, table: _Table, index: int) -> None:
        self._table, self._index = table, index
        t, alpha, sigma = (self._pick(name) for name in ("t", "alpha", "sigma"))
        super().__init__(table.process, table.parametrization, t, alpha, sigma)

    def _pick(self, name: str) -> Tensor:
        (values,) = self._table.column(name)
        return values[self._index]

    def _pick_pair(self, name: str) -> Pair:
        first, second = self._table.column(name)
        return first[self._index], second[self._index]

    @cached_property
    def scale(self) -> Tensor:
        return self._pick("scale")

    @cached_property
    def level(self) -> Tensor:
        return self._pick("level")

    @cached_property
    def log_ratio(self) -> Tensor:
        # in float64, as those of neighbouring times are close
        return self._table.log_ratio[self._index]

    @cached_property
    def target_coefficients(self) -> Pair:
        return self._pick_pair("target_coefficients")

    @cached_property
    def x0(self) -> Pair:
        return self._pick_pair("x0")

    @cached_property
    def eps(self) -> Pair:
        return self._pick_pair("eps")

    @cached_property
    def rates(self) -> Pair:
        return self._pick_pair("rates")

    @cached_property
    def diffusion(self) -> Tensor:
        return self._pick("diffusion")

    @cached_property
    def velocity(self) -> Pair:
        return self._pick_pair("velocity")


def tabulate(
    process: Process, parametrization: Parametrization, times: Iterable[float], dtype: torch.dtype
) -> dict[float, Coefficients]:
    """The coefficients at each of `times`, computed in one batch in float64, then cast to `dtype`.

    A sampler's times are known at its start; computing each by itself takes longer than the rest
    of its step.
    """
    points = list(times)
    t = torch.tensor(points, dtype=torch.float64)
    table = _Table(process, parametrization, t, dtype)
    return {point: _Entry(table, index) for index, point in enumerate(points)}


def multistep_factors(gains: Sequence[Tensor]) -> list[Tensor]:
    """Factors by which a step of DPM-Solver++ extrapolates the predicted images.

    `gains` are those of ln(alpha/sigma) in this step and in the one or two before it, the newest
    first. The image of the step is the newest one plus the sum of factor·(newer − older image): a
    line through two images (2M) or a parabola through three (3M), whose curvature counts half, as
    in the authors' code. The first gain of a process without signal at its start is infinite; its
    difference gets the factor 0.  Lu et al. 2022, arXiv:2211.01095.
    """
    if len(gains) == 1:
        return []
    gain, ratio = gains[0], gains[1] / gains[0]
    if len(gains) == 2:
        return [0.5 / ratio]
    # weights of slope and curvature; an exact parabola has twice this curvature, and is less
    # accurate on coarse grids
    e = torch.expm1(-gain)
    slope, curvature = -(e + gain) / (e * gain), ((e + gain) / gain**2 - 0.5) / e
    earlier = gains[2] / gain
    bend = (slope * ratio + curvature) / (ratio + earlier)
    return [(slope + bend) / ratio, -bend / earlier]
