"""Denoising circuits: a recurrent update in a latent, taught to follow the sampler in the image.

The network has an encoder Rin, an update R and two read-outs, Rout (the output, of any
parametrization) and X0out (the image); docs/circuits.md. With x_0 … x_n the sampler's own states
at n + 1 times (DDIM from x_0 = x_t, no gradient), z_0 = Rin(x_0) and z_{k+1} = R(z_k):

    main  = ½·(|Rout(Rin(x_t)) − target|² + mean_k |Rout(z_k) − Rout(Rin(x_k))|²)     k = 1 … n
    image = ½·(|X0out(Rin(x_t)) − x0|² + mean_k |X0out(z_k) − X0out(Rin(x_k))|²)
    chain = mean_k |z_k − Rin(x_k)|²
    loss  = main + λ_image·image + λ_chain·chain

where the right sides of k ≥ 1 come from the network itself, or its average, without a gradient; n
is drawn with the probabilities `depths`, one for each batch, and n = 0 is the plain loss, whose x_t
is at any time of the ring. R learns every update that the ring applies, down to the last. A chain
may be longer than the gradient reaches back: then R also learns from where a ring gets to.
Denoising Circuits for 1-Step Diffusion (shuntama/denoising-circuits), without the defects of its
code: docs/circuits.md.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep import ema
from fewstep.circuit import Circuit
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, SampleSpec
from fewstep.losses import squared_error
from fewstep.methods.base import Batch, Loss, Method, Turn
from fewstep.parametrization import Eps
from fewstep.sampling import ring
from fewstep.times import FixedGrid, UniformGrid


@dataclass(frozen=True)
class CircuitMethodConfig:
    steps: int = 1000
    """Equal steps of time from noise to data: the most that a ring takes."""
    depths: tuple[float, ...] = (0.0, 1.0)
    """How often to unroll 0, 1, 2, ... updates; shares that sum to anything. Published: depth 1
    throughout, then depth 3."""
    strides: tuple[int, ...] = (1,)
    """Steps that an update goes, drawn evenly: a ring can then take as many times fewer. What it
    follows goes step by step."""
    length: int = 0
    """Updates of a chain, if more than the depth, and at most the ring's: all are compared, and a
    gradient goes back through as many as the depth says. A chain as long as the ring starts at
    noise, and so is compared where a ring gets to."""
    follow: Literal["live", "average"] = "live"
    """Whose states the updates follow: the network's own, or those of its average."""
    decay: float = 0.999
    """Of that average, a step."""
    chain: float = 5.0
    """λ_chain, of the latents."""
    image: float = 1.0
    """λ_image, of X0out."""
    label_dropout: float = 0.0
    """Share of rows trained without their label: what guidance of the ordinary sampler asks for; a
    ring cannot be guided."""
    joint: bool = False
    """Whether the losses of the updates train the encoder too, as published. It then learns latents
    that hardly move, which any update predicts and no ring gets anywhere by: docs/log.md."""
    phases: tuple[int, ...] = ()
    """Training steps of the plain loss alone, then of chains, each with a schedule of its own. The
    second keeps the encoder, so that the latents to follow stand still, and the updates start from
    its trunk. fit.steps is their sum. Empty: chains from the start."""

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 0 or not sum(self.depths):
            raise InputError("method.depths: give shares of depth 0, 1, ..., not all of them 0")
        if min(self.strides, default=0) < 1 or len({*self.strides}) < len(self.strides):
            raise InputError(f"method.strides is {list(self.strides)}; give different counts")
        if min(self.length, self.chain, self.image) < 0:
            raise InputError("method.length, method.chain and method.image must be at least 0")
        if not (0 <= self.decay < 1 and 0 <= self.label_dropout <= 1):
            raise InputError("method.decay and method.label_dropout are shares: 0 to 1")
        if any(self.steps % stride for stride in self.strides):
            raise InputError(f"each of method.strides must divide method.steps, {self.steps}")
        deepest = (len(self.depths) - 1) * min(self.strides)
        if deepest > self.steps:
            raise InputError(f"method.depths unrolls {deepest} of method.steps, {self.steps}")
        if len(self.phases) not in (0, 2) or min(self.phases, default=1) < 1:
            raise InputError(f"method.phases is {list(self.phases)}; give none, or two counts")
        if self.phases and self.joint:
            raise InputError("method.joint trains the encoder, which method.phases keeps: give one")


class CircuitMethod(Method):
    """Teach the update to lead from latent to latent as the sampler does from image to image."""

    Config = CircuitMethodConfig
    reads = frozenset({"images"})
    needs_teacher = False
    config: CircuitMethodConfig

    def __init__(
        self, config: Any, student: Denoiser, spec: SampleSpec, *, teacher: Generator | None = None
    ) -> None:
        Circuit(student)
        last = torch.tensor(student.span[1])
        if isinstance(student.parametrization, Eps) and student.process.ratio(last).isinf():
            raise InputError("where all is noise, eps tells no image: use velocity or v")
        super().__init__(config, student, spec, teacher=teacher)
        self.target = deepcopy(student) if config.follow == "average" else None
        end = torch.tensor([student.span[0]], dtype=torch.float64)
        self.times = torch.cat([UniformGrid()(config.steps, student), end])

    @property
    def fixed_steps(self) -> int | None:
        return sum(self.config.phases) or None

    def turns(self, step: int) -> Iterator[Turn]:
        plain, chained = self.config.phases or (0, 0)
        if step < plain:
            yield Turn("student", self.plain_loss, phase=(0, plain))
        else:
            if chained and step == plain:
                for denoiser in filter(None, (self.student, self.target)):
                    Circuit(denoiser).net.follow_encoder()
            phase = (plain, plain + chained) if chained else None
            yield Turn("student", self.student_loss, phase=phase)
        if self.target:
            ema.follow(self.target, self.student, decay=self.config.decay)

    def plain_loss(self, batch: Batch) -> Loss:
        """What both read-outs say of an image's latent, at any time of the ring."""
        return self._weighed(self._plain(batch, encoder=True))

    def student_loss(self, batch: Batch) -> Loss:
        """The plain loss, and that of a chain of updates, if one is drawn."""
        depth, updates, stride = self._drawn(batch)
        parts = self._plain(batch, encoder=not self.config.phases)
        if depth:
            for name, error in self._chain(batch, depth, updates, stride).items():
                parts[name] = 0.5 * (parts[name] + error) if name in parts else error
        return self._weighed(parts)

    def _weighed(self, parts: dict[str, Tensor]) -> Loss:
        weights = {"main": 1.0, "image": self.config.image, "chain": self.config.chain}
        value = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return Loss(value, parts)

    def _drawn(self, batch: Batch) -> tuple[int, int, int]:
        """Updates that a gradient goes back, updates, and steps that each goes; of the batch."""
        config = self.config
        place = batch.shared_rand() * sum(config.depths)
        depth = sum(place >= below for below in accumulate(config.depths[:-1]))
        stride = config.strides[int(batch.shared_rand() * len(config.strides))]
        return depth, min(max(config.length, depth), config.steps // stride), stride

    def _cond(self, batch: Batch) -> Condition | None:
        cond, share = batch.images.cond, self.config.label_dropout
        return cond.drop(batch.rand() < share) if cond is not None and share else cond

    def _at(self, place: Tensor) -> Tensor:
        """The time after so many of the ring's steps."""
        return self.times.to(place.device)[place].float()

    def _plain(self, batch: Batch, *, encoder: bool) -> dict[str, Tensor]:
        """Errors on fresh latents, with a gradient into the encoder or into the read-outs alone."""
        circuit, x0 = Circuit(self.student), batch.images.x0
        t = self._at((batch.rand() * (self.config.steps + 1)).long())
        eps = batch.randn_like(x0)
        x_t = self.student.process.add_noise(x0, eps, t)
        a, b = self.student.parametrization.row(*self.student.process.at(t, like=x0))
        with torch.set_grad_enabled(encoder):
            z = circuit.encode(x_t, t, cond=self._cond(batch))
        return {
            "main": squared_error(circuit.read(z, t), a * x0 + b * eps).mean(),
            "image": squared_error(circuit.image(z, t), x0).mean(),
        }

    def _chain(self, batch: Batch, depth: int, updates: int, stride: int) -> dict[str, Tensor]:
        circuit, cond = Circuit(self.student), self._cond(batch)
        first = (batch.rand() * (self.config.steps - updates * stride + 1)).long()
        times = [self._at(first + k) for k in range(updates * stride + 1)]
        eps = batch.randn_like(batch.images.x0)
        x = self.student.process.add_noise(batch.images.x0, eps, times[0])
        followed = Circuit(self.target or self.student)
        with torch.no_grad():
            seen = list(followed.states(x, times, cond=cond))[::stride]
            ends = list(zip(seen, times[::stride], strict=True))[1:]
            images = [followed.image(z, t) for (z, _), t in ends]
        z = seen[0][0]
        if self.target or self.config.joint:
            with torch.set_grad_enabled(self.config.joint):
                z = circuit.encode(x, times[0], cond=cond)
        errors = {"main": list[Tensor](), "image": list[Tensor](), "chain": list[Tensor]()}
        for k in range(updates):
            if k and k % depth == 0:
                z = z.detach()
            t, s = times[k * stride], times[(k + 1) * stride]
            z = circuit.advance(z, t, s, cond=cond)
            wanted, said = seen[k + 1]
            errors["main"].append(squared_error(circuit.read(z, s), said.output).mean())
            errors["image"].append(squared_error(circuit.image(z, s), images[k]).mean())
            errors["chain"].append(squared_error(z, wanted).mean())
        return {name: torch.stack(found).mean() for name, found in errors.items()}

    def generator(self) -> Generator:
        counts = [self.config.steps // stride for stride in self.config.strides]
        grids = [UniformGrid()(count, self.student).tolist() for count in counts]
        return Generator(
            self.student, self.spec, grid=FixedGrid(tuple(map(tuple, grids))), step=ring
        )
