"""Call the parts of a circuit with times instead of noise levels, and sample by its ring."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from fewstep.circuits.layers import State
from fewstep.circuits.network import CircuitNet
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser, Prediction, Time
from fewstep.errors import InputError
from fewstep.guidance import unguided
from fewstep.sampling import Step, StepContext


class Circuit:
    """The parts of a denoiser whose backbone is a `CircuitNet`.

    As in `Denoiser`, inputs are scaled, times are converted to levels, and the precision is set.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        """Raises: InputError for any other backbone, and for a circuit under guidance."""
        if unguided(denoiser.backbone) is not denoiser.backbone:
            raise InputError(
                "the sampler ring has no guidance: set the weight of guidance to 1, choose another "
                "sampler, or train the circuit with method.guidance"
            )
        if not isinstance(denoiser.backbone, CircuitNet):
            raise InputError(
                f"this network is a {type(denoiser.backbone).__name__}, without a hidden state to "
                "advance: it must be a circuit (docs/circuits.md)"
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
        with self.denoiser.precision_context(x_t):
            return self.net.encode(scale * x_t, level, cond).to(x_t.dtype)

    def advance(self, z: State, t: Time, s: Time, *, cond: Condition | None = None) -> State:
        """R: the state at `s`, from the state `z` at `t`."""
        level, level_s = self._level(t, z), self._level(s, z)
        with self.denoiser.precision_context(z):
            return self.net.advance(z, level, level_s, cond).to(z.dtype)

    def read(self, z: State, t: Time) -> Tensor:
        """Rout: the network's raw output from the state at `t`; `Denoiser.interpret` takes it."""
        level = self._level(t, z)
        with self.denoiser.precision_context(z):
            return self.net.read(z, level).to(z.dtype)

    def image(self, z: State, t: Time) -> Tensor:
        """X0out: the image x0 (b, c, h, w) from the state at `t`."""
        level = self._level(t, z)
        with self.denoiser.precision_context(z):
            return self.net.image(z, level).to(z.dtype)

    def _level(self, t: Time, z: State) -> Tensor:
        return self.denoiser.network_inputs(t, z)[1]

    def encode_path(
        self,
        x: Tensor,
        times: Sequence[Tensor | float],
        *,
        cond: Condition | None = None,
        guidance: float = 1.0,
    ) -> Iterator[tuple[State, Prediction]]:
        """Sample by DDIM (η = 0) and encode each x_t on the path.

        `x` (b, c, h, w) is x_t at the first of `times`. `guidance` is the weight of classifier-free
        guidance of the path. Yields, for each time, the state and the prediction that is read from
        it, without guidance.
        """
        for t, s in zip(times, [*times[1:], None], strict=True):
            z = self.encode(x, t, cond=cond)
            prediction = self.denoiser.interpret(x, t, self.read(z, t))
            yield z, prediction
            if s is None:
                return
            if guidance != 1 and cond is not None:
                null = self.read(self.encode(x, t, cond=cond.null()), t)
                output = guidance * prediction.output + (1 - guidance) * null
                prediction = self.denoiser.interpret(x, t, output)
            x = self.denoiser.process.add_noise(prediction.x0, prediction.eps, s)

    def ring(
        self, noise: Tensor, times: Sequence[float], *, cond: Condition | None = None
    ) -> Iterator[State]:
        """Encode noise (b, c, h, w) at the first of `times`, then update to each of the others.

        Yields the state at each of `times`.
        """
        table = self.denoiser.tabulate(times, like=noise)
        z = self.encode(self.denoiser.process.start(noise, times[0]), table[times[0]], cond=cond)
        yield z
        for t, s in zip(times, times[1:], strict=False):
            z = self.advance(z, table[t], table[s], cond=cond)
            yield z


@dataclass(frozen=True)
class Ring(Step):
    """A circuit's own sampler: encode the noise, update the hidden state N times, read the image.

    Each step is one update. There are no intermediate images: all steps except the last return x_t
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
