"""Call the parts of a circuit in terms of times instead of noise levels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fewstep.circuits.layers import State
from fewstep.circuits.network import CircuitNet
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser, Prediction, Time
from fewstep.errors import InputError
from fewstep.sampling import Step, StepContext


class Circuit:
    """The parts of a denoiser whose backbone is a `CircuitNet`.

    Inputs are scaled, times converted to levels, and calls cast, as `Denoiser` does.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        """Raises: InputError for any other backbone."""
        if not isinstance(denoiser.backbone, CircuitNet):
            raise InputError(
                f"this network is a {type(denoiser.backbone).__name__}, without a hidden state to "
                "advance: it must be a circuit (docs/circuits.md), without guidance"
            )
        self.denoiser = denoiser
        self.net: CircuitNet = denoiser.backbone

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the state."""
        return self.net.config.state.shape(self.net.shape)

    def encode(self, x_t: Tensor, t: Time, *, cond: Condition | None = None) -> State:
        """Rin: the state of `x_t` (b, c, h, w) at `t`."""
        scale, level = self.denoiser.network_inputs(t, x_t)
        with self.denoiser.autocast_context(x_t):
            return self.net.encode(scale * x_t, level, cond).to(x_t.dtype)

    def advance(self, z: State, t: Time, s: Time, *, cond: Condition | None = None) -> State:
        """R: the state at `s` from the one at `t`."""
        level, level_s = self._level(t, z), self._level(s, z)
        with self.denoiser.autocast_context(z):
            return self.net.advance(z, level, level_s, cond).to(z.dtype)

    def read(self, z: State, t: Time) -> Tensor:
        """Rout: the network's output from the state at `t`, in the parametrization's terms."""
        level = self._level(t, z)
        with self.denoiser.autocast_context(z):
            return self.net.read(z, level).to(z.dtype)

    def image(self, z: State, t: Time) -> Tensor:
        """X0out: the image x0 (b, c, h, w) from the state at `t`."""
        level = self._level(t, z)
        with self.denoiser.autocast_context(z):
            return self.net.image(z, level).to(z.dtype)

    def _level(self, t: Time, z: State) -> Tensor:
        return self.denoiser.network_inputs(t, z)[1]

    def encode_path(
        self, x: Tensor, times: Sequence[Tensor | float], *, cond: Condition | None = None
    ) -> Iterator[tuple[State, Prediction]]:
        """Follow the ordinary sampler (DDIM, η = 0) and encode each of its points.

        `x` (b, c, h, w) is at the first of `times`. Yields for each time the state, and the
        prediction that is read from it.
        """
        for t, s in zip(times, [*times[1:], None], strict=True):
            z = self.encode(x, t, cond=cond)
            prediction = self.denoiser.interpret(x, t, self.read(z, t))
            yield z, prediction
            if s is not None:
                x = self.denoiser.process.add_noise(prediction.x0, prediction.eps, s)

    def ring(
        self, noise: Tensor, times: Sequence[float], *, cond: Condition | None = None
    ) -> Iterator[State]:
        """Encode noise (b, c, h, w) at the first of `times`, then update: a state for each time."""
        table = self.denoiser.tabulate(times, like=noise)
        z = self.encode(self.denoiser.process.start(noise, times[0]), table[times[0]], cond=cond)
        yield z
        for t, s in zip(times, times[1:], strict=False):
            z = self.advance(z, table[t], table[s], cond=cond)
            yield z


@dataclass(frozen=True)
class Ring(Step):
    """A circuit's own sampler: encode once, update the hidden state, read the image at the end.

    N steps are N updates. There are no images in between: until the last step x_t is returned
    unchanged.
    """

    deterministic: ClassVar[bool] = True
    own_grid: ClassVar[bool] = True

    def __call__(
        self, context: StepContext, x_t: Tensor, t: float, s: float | None
    ) -> tuple[Tensor, Any]:
        circuit, cond = Circuit(context.model), context.cond
        ends = (t, context.model.span[0] if s is None else s)
        start, end = (context.coefficients(time, x_t) for time in ends)
        z = circuit.encode(x_t, start, cond=cond) if context.memory is None else context.memory
        z = circuit.advance(z, start, end, cond=cond)
        return (circuit.image(z, end), None) if s is None else (x_t, z)
