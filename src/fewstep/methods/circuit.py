"""Denoising circuits: train a recurrent update of a hidden state to follow the ordinary sampler.

The network has an encoder Rin, an update R and two read-outs: Rout gives the output, in any
parametrization, and X0out the image (docs/circuits.md). With x_0 … x_n the points of DDIM at n + 1
times, from x_0 = x_t and without gradient, z_0 = Rin(x_0) and z_{k+1} = R(z_k):

    main  = ½·(|Rout(Rin(x_t)) − target|² + mean_k |Rout(z_k) − Rout(Rin(x_k))|²)     k = 1 … n
    image = ½·(|X0out(Rin(x_t)) − x0|² + mean_k |X0out(z_k) − X0out(Rin(x_k))|²)
    chain = mean_k |z_k − Rin(x_k)|²
    loss  = main + λ_image·image + λ_chain·chain

The targets for k ≥ 1 come from the network itself, or its average, without gradient. One n per
batch is drawn with the probabilities `depths`; n = 0 is the plain loss, with x_t at any time of the
ring. After Denoising Circuits for 1-Step Diffusion (shuntama/denoising-circuits).
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from fewstep import ema
from fewstep.circuits.view import Circuit, Ring
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import Loss, Method, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.parametrization import Eps
from fewstep.times import FixedGrid, UniformGrid


@dataclass(frozen=True)
class CircuitMethodConfig:
    steps: int = 1000
    """Number of equal steps of time from noise to data, and the largest number of updates."""
    depths: tuple[float, ...] = (0.0, 1.0)
    """Relative frequencies of training on 0, 1, 2, … updates in a row. Published: 1, then 3."""
    strides: tuple[int, ...] = (1,)
    """Steps of time per update, one of these numbers per batch; the sampler of the targets takes
    every step."""
    length: int = 0
    """Least number of updates in a chain, up to those of a whole ring. All are compared with their
    targets, but gradients pass through only as many as the depth."""
    follow: Literal["live", "average"] = "live"
    """Network that makes the targets: the trained one (`live`), or its `average`."""
    decay: float = 0.999
    """Decay of that average per training step, below 1."""
    chain: float = 5.0
    """λ_chain, weight of the error of the states."""
    image: float = 1.0
    """λ_image, weight of the error of X0out."""
    label_dropout: float = 0.0
    """Share of rows, 0 to 1, trained without their label, for guidance. Only the ordinary sampler
    can be guided, not the ring."""
    joint: bool = False
    """Whether the losses of the updates also train the encoder, as published. It then learns states
    that hardly change: easy to predict, and useless in a ring (docs/log.md)."""
    phases: tuple[int, ...] = ()
    """Training steps with the plain loss, then with chains and a frozen encoder, whose targets no
    longer change. Each phase has its own schedule; fit.steps must be their sum. Empty: chains from
    the start."""

    def __post_init__(self) -> None:
        if not self.depths or min(self.depths) < 0 or not sum(self.depths):
            raise InputError(f"method.depths is {list(self.depths)}; give shares, not all 0")
        if min(self.strides, default=0) < 1 or len({*self.strides}) < len(self.strides):
            raise InputError(f"method.strides is {list(self.strides)}; give different counts")
        if min(self.length, self.chain, self.image) < 0:
            raise InputError("method.length, method.chain and method.image must be at least 0")
        if not (0 <= self.decay < 1 and 0 <= self.label_dropout <= 1):
            raise InputError("method.decay and method.label_dropout must be from 0 to 1")
        if any(self.steps % stride for stride in self.strides):
            raise InputError(f"each of method.strides must divide method.steps, {self.steps}")
        deepest = (len(self.depths) - 1) * min(self.strides)
        if deepest > self.steps:
            raise InputError(f"method.depths spans {deepest} steps, and method.steps {self.steps}")
        if len(self.phases) not in (0, 2) or min(self.phases, default=1) < 1:
            raise InputError(f"method.phases is {list(self.phases)}; give two step counts, or none")
        if self.phases and self.joint:
            raise InputError("method.joint trains the encoder, which method.phases freezes")


class CircuitMethod(Method[CircuitMethodConfig]):
    """Train a circuit's updates to agree with the steps of the ordinary sampler."""

    reads = frozenset({"images"})
    needs_teacher = False

    def __init__(self, config: CircuitMethodConfig, task: Task) -> None:
        student = task.student
        Circuit(student)  # raises InputError for other networks
        last = torch.tensor(student.span[1])
        if isinstance(student.parametrization, Eps) and student.process.ratio(last).isinf():
            raise InputError("an eps network predicts no image from pure noise: use velocity or v")
        super().__init__(config, task)
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
                    Circuit(denoiser).net.copy_encoder()
            phase = (plain, plain + chained) if chained else None
            yield Turn("student", self.student_loss, phase=phase)
        if self.target:
            ema.follow(self.target, self.student, decay=self.config.decay)

    def plain_loss(self, batch: Batch) -> Loss:
        """Errors of both read-outs on encoded images, at random times of the ring."""
        return self._weighted(self._plain(batch, encoder=True))

    def student_loss(self, batch: Batch) -> Loss:
        """The plain loss and, unless the depth is 0, that of a chain of updates."""
        depth, updates, stride = self._draw_chain(batch)
        parts = self._plain(batch, encoder=not self.config.phases)
        if depth:
            for name, error in self._chain(batch, depth, updates, stride).items():
                parts[name] = 0.5 * (parts[name] + error) if name in parts else error
        return self._weighted(parts)

    def _weighted(self, parts: dict[str, Tensor]) -> Loss:
        weights = {"main": 1.0, "image": self.config.image, "chain": self.config.chain}
        value = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
        return Loss(value, parts)

    def _draw_chain(self, batch: Batch) -> tuple[int, int, int]:
        """Draw the depth (updates that gradients pass), all updates, and the steps per update."""
        config = self.config
        draw = batch.shared_rand() * sum(config.depths)
        depth = sum(draw >= bound for bound in accumulate(config.depths[:-1]))
        stride = config.strides[int(batch.shared_rand() * len(config.strides))]
        return depth, min(max(config.length, depth), config.steps // stride), stride

    def _cond(self, batch: Batch) -> Condition | None:
        cond, share = batch.images.cond, self.config.label_dropout
        return cond.drop(batch.rand() < share) if cond is not None and share else cond

    def _time(self, index: Tensor) -> Tensor:
        return self.times.to(index.device)[index].float()

    def _plain(self, batch: Batch, *, encoder: bool) -> dict[str, Tensor]:
        """Errors on encoded images; `encoder` says whether the encoder is trained."""
        circuit, x0 = Circuit(self.student), batch.images.x0
        t = self._time((batch.rand() * (self.config.steps + 1)).long())
        eps = batch.randn_like(x0)
        x_t = self.student.process.add_noise(x0, eps, t)
        with torch.set_grad_enabled(encoder):
            z = circuit.encode(x_t, t, cond=self._cond(batch))
        prediction = self.student.interpret(x_t, t, circuit.read(z, t))
        return {
            "main": squared_error(prediction.output, prediction.target(x0, eps)).mean(),
            "image": squared_error(circuit.image(z, t), x0).mean(),
        }

    def _chain(self, batch: Batch, depth: int, updates: int, stride: int) -> dict[str, Tensor]:
        circuit, cond = Circuit(self.student), self._cond(batch)
        first = (batch.rand() * (self.config.steps - updates * stride + 1)).long()
        times = [self._time(first + k) for k in range(updates * stride + 1)]
        x0 = batch.images.x0
        x = self.student.process.add_noise(x0, batch.randn_like(x0), times[0])
        target = Circuit(self.target or self.student)
        with torch.no_grad():
            path = list(target.encode_path(x, times, cond=cond))[::stride]
            z = path[0][0]
        if self.target or self.config.joint:
            with torch.set_grad_enabled(self.config.joint):
                z = circuit.encode(x, times[0], cond=cond)
        errors = {"main": list[Tensor](), "image": list[Tensor](), "chain": list[Tensor]()}
        for k, (state, prediction) in enumerate(path[1:]):
            if k and k % depth == 0:
                z = z.detach()
            t, s = times[k * stride], times[(k + 1) * stride]
            with torch.no_grad():
                image = target.image(state, s)
            z = circuit.advance(z, t, s, cond=cond)
            errors["main"].append(squared_error(circuit.read(z, s), prediction.output).mean())
            errors["image"].append(squared_error(circuit.image(z, s), image).mean())
            errors["chain"].append(squared_error(z, state).mean())
        return {name: torch.stack(parts).mean() for name, parts in errors.items()}

    def generator(self) -> Generator:
        counts = [self.config.steps // stride for stride in self.config.strides]
        grids = [tuple(UniformGrid()(count, self.student).tolist()) for count in counts]
        return Generator(self.student, self.spec, grid=FixedGrid(tuple(grids)), step=Ring())
