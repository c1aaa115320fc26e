"""Denoising circuits: a recurrent update in a latent, taught to follow the sampler in the image.

The network has an encoder Rin, an update R and two read-outs, Rout (the output, of any
parametrization) and X0out (the image); docs/circuits.md. With x_0 … x_n the sampler's own states
at n + 1 neighbouring times (DDIM from x_0 = x_t, no gradient), z_0 = Rin(x_0) and z_{k+1} = R(z_k):

    main  = ½·(|Rout(Rin(x_t)) − target|² + mean_k |Rout(z_k) − Rout(Rin(x_k))|²)     k = 1 … n
    image = ½·(|X0out(Rin(x_t)) − x0|² + mean_k |X0out(z_k) − X0out(Rin(x_k))|²)
    chain = mean_k |z_k − Rin(x_k)|²
    loss  = main + λ_image·image + λ_chain·chain

where the right sides of k ≥ 1 come from the network itself, or its average, without a gradient; n
is drawn with the probabilities `depths`, one for each batch, and n = 0 is the plain loss, whose x_t
is at any time of the ring. R learns every update that the ring applies, down to the last.
Denoising Circuits for 1-Step Diffusion (shuntama/denoising-circuits), without the defects of its
code: docs/circuits.md.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fewstep import ema
from fewstep.circuit import Circuit
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, Subject
from fewstep.losses import square_error
from fewstep.methods.base import Batch, Loss, Method, Turn
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
    """Steps that an update goes, drawn evenly: a ring can then take as many times fewer."""
    follow: Literal["live", "average"] = "live"
    """Whose states the updates follow: the network's own, or those of its average."""
    decay: float = 0.999
    """Of that average, a step."""
    chain: float = 5.0
    """λ_chain, of the latents."""
    image: float = 1.0
    """λ_image, of X0out."""
    joint: bool = False
    """Whether the losses of the updates train the encoder too, as published. It then learns latents
    that hardly move, which any update predicts and no ring gets anywhere by: docs/log.md."""
    rollout: int = 0
    """Up to so many updates are made before, without a gradient: the unrolled ones then start where
    a ring gets to, and not at a fresh latent. Drawn evenly, one number for each batch."""

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 0 or not sum(self.depths):
            raise InputError("method.depths: give shares of depth 0, 1, ..., not all of them 0")
        if not self.strides or min(self.strides) < 1 or self.rollout < 0:
            raise InputError("method.strides must be 1 or more, and method.rollout at least 0")
        for stride in self.strides:
            if self.steps % stride:
                told = f"method.strides has {stride}, which does not divide method.steps = "
                raise InputError(f"{told}{self.steps}")
        longest = (len(self.depths) - 1 + self.rollout) * max(self.strides)
        if longest > self.steps:
            raise InputError(
                f"method.steps is {self.steps}; depths, rollout and strides reach over {longest}"
            )


class Seen(NamedTuple):
    """What the followed network says of one of the sampler's states."""

    z: Tensor
    output: Tensor
    image: Tensor


class CircuitMethod(Method):
    """Teach the update to lead from latent to latent as the sampler does from image to image."""

    Config = CircuitMethodConfig
    reads = frozenset({"images"})
    needs_teacher = False
    config: CircuitMethodConfig

    def __init__(
        self, config: Any, student: Denoiser, subject: Subject, *, teacher: Generator | None = None
    ) -> None:
        circuit = Circuit(student)
        if teacher and circuit.net.config.lora:
            circuit.net.adopt(teacher.denoiser.backbone)
        super().__init__(config, student, subject, teacher=teacher)
        self.target = deepcopy(student) if config.follow == "average" else None
        end = torch.tensor([student.span[0]], dtype=torch.float64)
        self.times = torch.cat([UniformGrid()(config.steps, student), end])

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)
        if self.target:
            ema.follow(self.target, self.student, decay=self.config.decay)

    def student_loss(self, batch: Batch) -> Loss:
        circuit, x0, cond = Circuit(self.student), batch.images.x0, batch.images.cond
        depth, before, stride = self._drawn(batch)
        reach = (before + depth) * stride
        first = (batch.rand() * (self.config.steps - reach + 1)).long()
        times = [self._at(first + k * stride) for k in range(before + depth + 1)]
        anywhere = self._at((batch.rand() * (self.config.steps + 1)).long())
        eps = batch.randn_like(x0)
        x_t = self.student.process.noised(x0, eps, anywhere)
        a, b = self.student.parametrization.row(*self.student.process.at(anywhere, like=x0))
        z = circuit.encode(x_t, anywhere, cond=cond)
        mains = [square_error(circuit.read(z, x_t, anywhere).output, a * x0 + b * eps).mean()]
        images = [square_error(circuit.image(z, anywhere), x0).mean()]
        chains: list[Tensor] = []
        start = self.student.process.noised(x0, eps, times[0])
        seen = self._followed(start, times, cond) if depth else []
        with torch.set_grad_enabled(self.config.joint and not before):
            z = circuit.encode(start, times[0], cond=cond)
        for k, (t, s) in enumerate(zip(times, times[1:], strict=False), start=1):
            with torch.set_grad_enabled(k > before):
                z = circuit.advance(z, t, s, cond=cond)
            if k > before:
                mains.append(square_error(circuit.read(z, start, s).output, seen[k].output).mean())
                images.append(square_error(circuit.image(z, s), seen[k].image).mean())
                chains.append(square_error(z, seen[k].z).mean())
        main, image = _halves(mains), _halves(images)
        chain = torch.stack(chains).mean() if chains else main.new_zeros(())
        value = main + self.config.image * image + self.config.chain * chain
        return Loss(value, {"main": main, "image": image, "chain": chain})

    def _at(self, place: Tensor) -> Tensor:
        """The time after so many of the ring's steps."""
        return self.times.to(place.device)[place].float()

    def _drawn(self, batch: Batch) -> tuple[int, int, int]:
        """Updates to unroll, updates to make before, and steps that each goes; of the batch."""
        place = batch.shared_rand() * sum(self.config.depths)
        depth = sum(place >= below for below in accumulate(self.config.depths[:-1]))
        before = int(batch.shared_rand() * (self.config.rollout + 1)) if depth else 0
        strides = self.config.strides
        return depth, before, strides[int(batch.shared_rand() * len(strides))]

    @torch.no_grad()
    def _followed(self, x: Tensor, times: list[Tensor], cond: Condition | None) -> list[Seen]:
        """What the followed network says along its own sampler's way from `x` (DDIM, η = 0)."""
        circuit, seen = Circuit(self.target or self.student), list[Seen]()
        for k, t in enumerate(times):
            z = circuit.encode(x, t, cond=cond)
            said = circuit.read(z, x, t)
            seen.append(Seen(z, said.output, circuit.image(z, t)))
            if k + 1 < len(times):
                alpha, sigma = self.student.process.at(times[k + 1], like=x)
                x = alpha * said.x0 + sigma * said.eps
        return seen

    def generator(self) -> Generator:
        counts = [self.config.steps // stride for stride in self.config.strides]
        grids = [UniformGrid()(count, self.student).tolist() for count in counts]
        return Generator(
            self.student, self.subject, grid=FixedGrid(tuple(map(tuple, grids))), step=ring
        )


def _halves(errors: list[Tensor]) -> Tensor:
    """Half of the first, and half of the mean of the others, if there are any."""
    first, *others = errors
    return 0.5 * (first + torch.stack(others).mean()) if others else first
