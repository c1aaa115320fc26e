"""A circuit asked in times: its latents, one from another, and what is read from them."""

from collections.abc import Iterator, Sequence

from jaxtyping import Float
from torch import Tensor

from fewstep.backbones.circuit import CircuitNet
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser, Prediction
from fewstep.errors import InputError

Latent = Float[Tensor, "b latent _ _"]
Time = Tensor | float


class Circuit:
    """The parts of a denoiser whose backbone is a circuit, through the denoiser's own door."""

    def __init__(self, denoiser: Denoiser) -> None:
        """Raises: InputError for any other backbone."""
        if not isinstance(denoiser.backbone, CircuitNet):
            raise InputError(
                f"this network is a {denoiser.backbone.config.name}, without a latent that could "
                "be advanced: it needs a circuit (docs/circuits.md), and no guidance around it"
            )
        self.denoiser = denoiser
        self.net: CircuitNet = denoiser.backbone

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the latent."""
        return self.net.config.latent.shape(self.net.shape)

    def encode(self, x_t: Tensor, t: Time, *, cond: Condition | None = None) -> Latent:
        """Rin: the latent of `x_t` (b, c, h, w) at `t`."""
        scale, level = self.denoiser.network_inputs(t, x_t)
        with self.denoiser.autocast_context(x_t):
            return self.net.encode(scale * x_t, level, cond).to(scale.dtype)

    def advance(self, z: Latent, t: Time, s: Time, *, cond: Condition | None = None) -> Latent:
        """R: the latent at `s` from the one at `t`."""
        (_, level), (_, level_s) = (
            self.denoiser.network_inputs(t, z),
            self.denoiser.network_inputs(s, z),
        )
        with self.denoiser.autocast_context(z):
            return self.net.advance(z, level, level_s, cond).to(z.dtype)

    def read(self, z: Latent, t: Time) -> Tensor:
        """Rout: the network's output from the latent at `t`, in the parametrization's terms."""
        _, level = self.denoiser.network_inputs(t, z)
        with self.denoiser.autocast_context(z):
            return self.net.read(z, level).to(z.dtype)

    def image(self, z: Latent, t: Time) -> Tensor:
        """X0out: the image that the latent at `t` leads to."""
        _, level = self.denoiser.network_inputs(t, z)
        with self.denoiser.autocast_context(z):
            return self.net.image(z, level).to(z.dtype)

    def states(
        self, x: Tensor, times: Sequence[Time], *, cond: Condition | None = None
    ) -> Iterator[tuple[Latent, Prediction]]:
        """Where its ordinary sampler gets to (DDIM, η = 0), `x` (b, c, h, w) at the first of
        `times`: the latent there, and what is read from it."""
        for t, s in zip(times, [*times[1:], None], strict=True):
            z = self.encode(x, t, cond=cond)
            said = self.denoiser.interpret(x, t, self.read(z, t))
            yield z, said
            if s is not None:
                x = self.denoiser.process.add_noise(said.x0, said.eps, s)

    def ring(
        self, noise: Tensor, times: list[float], *, cond: Condition | None = None
    ) -> Iterator[Latent]:
        """The latents at each of `times`, noise (b, c, h, w) at the first: N + 1 for N updates."""
        z = self.encode(self.denoiser.process.at(times[0], like=noise)[1] * noise, times[0],
                        cond=cond)  # fmt: skip
        yield z
        for t, s in zip(times, times[1:], strict=False):
            z = self.advance(z, t, s, cond=cond)
            yield z
