"""Denoising circuits: train a recurrent update of a hidden state to follow the DDIM sampler.

The network has an encoder Rin, an update R and two read-outs: Rout computes the network's output,
in any parametrization, and X0out the image (docs/circuits.md). A ring is the sequence of updates
from pure noise to the image; a chain is any part of it. With x_0 … x_n the points of DDIM at n + 1
times, under the method's `guidance`, from x_0 = x_t and without gradient, z_0 = Rin(x_0) and
z_{k+1} = R(z_k):

    main  = ½·(|Rout(Rin(x_t)) − target|² + mean_k |Rout(z_k) − Rout(Rin(x_k))|²)     k = 1 … n
    image = ½·(|X0out(Rin(x_t)) − x0|² + mean_k |X0out(z_k) − X0out(Rin(x_k))|²)
    chain = mean_k |z_k − Rin(x_k)|²
    loss  = main + λ_image·image + λ_chain·chain

The targets for k ≥ 1 come from the network itself, or from its average, without gradient. Each
batch has one n, drawn with the probabilities `depths`; n = 0 leaves only the plain loss (k = 0),
with x_t at any time of the ring. Denoising Circuits for 1-Step Diffusion (shuntama).
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Literal

import torch
from torch import Tensor

from fewstep import ema
from fewstep.circuits.view import Circuit, Ring
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.guidance import check_guidance, unguided
from fewstep.losses import squared_error
from fewstep.methods.base import Loss, Method, Task, Turn, check_trainable_guidance
from fewstep.methods.batch import Batch
from fewstep.methods.schedule import step_ranges
from fewstep.parametrization import Eps
from fewstep.ranges import (
    NONEMPTY,
    CountOrZero,
    NonNegative,
    Positive,
    Probability,
    ProbabilityBelowOne,
    SamplingSteps,
)
from fewstep.tables import check_fields
from fewstep.times import FixedGrid, UniformGrid

Errors = dict[str, Tensor]


@dataclass(frozen=True)
class CircuitMethodConfig:
    steps: SamplingSteps = 1000
    """Number of equal time steps from noise to data, which is the largest number of updates."""
    depths: Annotated[tuple[NonNegative, ...], NONEMPTY] = (0.0, 1.0)
    """Relative frequencies of chains of 0, 1, 2, … updates. Published: chains of 1, later of 3."""
    strides: Annotated[tuple[SamplingSteps, ...], NONEMPTY] = (1,)
    """Time steps per update, one of these numbers per batch; DDIM takes every time step."""
    length: CountOrZero = 0
    """Fewest updates in a chain; gradients pass through only as many in a row as the depth."""
    follow: Literal["live", "average"] = "live"
    """Network that computes the targets: the one in training (`live`), or its `average`."""
    decay: ProbabilityBelowOne = 0.999
    """Decay of that average per training step, below 1."""
    chain: NonNegative = 5.0
    """λ_chain, the weight of the squared error of the states z_k in the loss."""
    image: NonNegative = 1.0
    """λ_image, the weight of the squared error of the X0out images in the loss."""
    condition_dropout: Probability = 0.0
    """Fraction of rows, 0 to below 1, trained without label, for guidance."""
    guidance: NonNegative = 1.0
    """Weight of classifier-free guidance of the sampler that the updates follow, so that a ring
    draws as that sampler does with guidance. Other weights than 1 need `condition_dropout`."""
    joint: bool = False
    """Whether the losses of the updates also train the encoder, as published. It then learns states
    that hardly change from step to step, and the images of a ring are poor (docs/log.md)."""
    phases: tuple[Positive, ...] = ()
    """Relative lengths of the two phases of the training: the plain loss, then chains and a frozen
    encoder, each with its own learning rate schedule. Empty: chains from the start."""

    @property
    def learns_guidance(self) -> bool:
        """Whether the updates follow a guided sampler."""
        return self.guidance != 1

    def __post_init__(self) -> None:
        depths, strides, phases = list(self.depths), list(self.strides), list(self.phases)
        check_fields(self, "method")
        if not sum(depths):
            problem = f"depths is {depths}; give frequencies, not all of them 0"
        elif len({*strides}) < len(strides):
            problem = f"strides is {strides}; give different numbers"
        elif any(self.steps % stride for stride in strides):
            problem = f"strides is {strides}; each must divide method.steps, {self.steps}"
        elif (len(depths) - 1) * min(strides) > self.steps:
            problem = f"depths has chains of more time steps than method.steps, {self.steps}"
        elif len(phases) not in (0, 2):
            problem = f"phases is {phases}; give two relative lengths, or none"
        elif phases and self.joint:
            problem = "joint trains the encoder, but method.phases freezes it: set only one of them"
        elif self.learns_guidance and not sum(depths[1:]):
            problem = f"guidance is {self.guidance}, which has no effect without chains of updates"
        else:
            return
        raise InputError(f"method.{problem}")


class CircuitMethod(Method[CircuitMethodConfig]):
    """Train the updates of a circuit to agree with the steps of the DDIM sampler."""

    reads, needs_teacher, uses_first_image = frozenset({"images"}), False, False

    def __init__(self, config: CircuitMethodConfig, task: Task) -> None:
        student = task.student
        Circuit(student)  # raises InputError for other networks
        last = student.process.ratio(torch.tensor(student.span[1]))
        if isinstance(student.parametrization, Eps) and last.isinf():
            need = 'set the student\'s parametrization to "velocity" or "v"'
            raise InputError(f"an eps-prediction network cannot give x0 from pure noise; {need}")
        super().__init__(config, task)
        check_guidance(config.guidance)
        if config.learns_guidance:
            check_trainable_guidance("method.guidance", config.condition_dropout, task.spec)
        self.target = deepcopy(student) if config.follow == "average" else None
        end = torch.tensor(student.span[:1], dtype=torch.float64)
        self.times = torch.cat([UniformGrid()(config.steps, student), end])
        self.phases = step_ranges(config.phases, task.steps) if config.phases else None

    @classmethod
    def length_settings(cls, config: CircuitMethodConfig) -> list[str]:
        return ["method.phases"] if config.phases else []

    def turns(self, step: int) -> Iterator[Turn]:
        plain, chains = self.phases or ((0, 0), None)
        if step < plain[1]:
            yield Turn("student", self.plain_loss, phase=plain)
        else:
            if chains and step == chains[0]:
                for denoiser in filter(None, (self.student, self.target)):
                    Circuit(denoiser).net.copy_encoder()
            yield Turn("student", self.student_loss, phase=chains)
        if self.target:
            ema.follow(self.target, self.student, decay=self.config.decay)

    def plain_loss(self, batch: Batch) -> Loss:
        """Weighted errors of both read-outs at k = 0, at random times of the ring."""
        return self._weighted_sum(self._plain_errors(batch, encoder=True))

    def student_loss(self, batch: Batch) -> Loss:
        """The plain loss and, unless the depth is 0, the loss of a chain of updates."""
        depth, updates, stride = self._draw_chain(batch)
        errors = self._plain_errors(batch, encoder=not self.config.phases)
        if depth:
            for name, error in self._chain_errors(batch, depth, updates, stride).items():
                errors[name] = 0.5 * (errors[name] + error) if name in errors else error
        return self._weighted_sum(errors)

    def _weighted_sum(self, errors: Errors) -> Loss:
        weights = {"main": 1.0, "image": self.config.image, "chain": self.config.chain}
        return Loss(torch.stack([weights[k] * each for k, each in errors.items()]).sum(), errors)

    def _draw_chain(self, batch: Batch) -> tuple[int, int, int]:
        """Draw a chain: updates in a row that gradients pass through, updates, and the stride."""
        config = self.config
        draw = batch.shared_rand() * sum(config.depths)
        depth = sum(draw >= bound for bound in accumulate(config.depths[:-1]))
        stride = config.strides[int(batch.shared_rand() * len(config.strides))]
        return depth, min(max(config.length, depth), config.steps // stride), stride

    def _cond(self, batch: Batch) -> Condition | None:
        cond, rate = batch.images.cond, self.config.condition_dropout
        return cond.drop(batch.rand() < rate) if cond is not None and rate else cond

    def _time(self, index: Tensor) -> Tensor:
        return self.times.to(index.device)[index].float()

    def _plain_errors(self, batch: Batch, *, encoder: bool) -> Errors:
        """Squared errors of both read-outs at k = 0; `encoder`: whether they train the encoder."""
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

    def _chain_errors(self, batch: Batch, depth: int, updates: int, stride: int) -> Errors:
        """Mean squared errors of read-outs and states over the updates k = 1 … n of a chain."""
        circuit, cond, x0 = Circuit(self.student), self._cond(batch), batch.images.x0
        first = (batch.rand() * (self.config.steps - updates * stride + 1)).long()
        times = [self._time(first + k) for k in range(updates * stride + 1)]
        x = self.student.process.add_noise(x0, batch.randn_like(x0), times[0])
        target = Circuit(self.target or self.student)
        with torch.no_grad():
            path = target.encode_path(x, times, cond=cond, guidance=self.config.guidance)
            path = list(path)[::stride]
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
        return {name: torch.stack(values).mean() for name, values in errors.items()}

    def warnings(self) -> list[str]:
        """Warns of a teacher whose weights the circuit cannot start from."""
        teacher = self.teacher and unguided(self.teacher.denoiser.backbone)
        problem = Circuit(self.student).net.why_not_from(teacher) if teacher else ""
        return [f"the circuit starts from random weights: {problem}"] if problem else []

    def generator(self) -> Generator:
        counts = [self.config.steps // stride for stride in self.config.strides]
        grids = [tuple(UniformGrid()(count, self.student).tolist()) for count in counts]
        return Generator(self.student, self.spec, grid=FixedGrid(tuple(grids)), step=Ring())
