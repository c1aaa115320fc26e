"""Distil a circuit into one step that predicts the sum of its updates.

A circuit's ring is the sequence of updates of its hidden state from z_0 = Rin(noise) to the last
state. The updates are divided into K equal parts; the chunk r_k is the sum of the updates in part
k, so the last state is exactly z_0 + Σ r_k. `fewstep record` stores z_0 and r_k with the noise. The
student predicts them as rin and chunks:

    loss = |rin − z_0|² + |chunks − r|² + λ·|X0out(rin + Σ chunks) − x0|²

X0out is the read-out of the circuit, with frozen weights. The method is that of Denoising Circuits
for 1-Step Diffusion (shuntama/denoising-circuits); see docs/circuits.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.circuits.one_step import ResidualsNet
from fewstep.circuits.view import Circuit
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import Distance, SquaredError, squared_error
from fewstep.methods.base import Loss, Method, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.parametrization import Clean
from fewstep.ranges import NonNegative
from fewstep.times import FixedGrid


@dataclass(frozen=True)
class ResidualSumConfig:
    """Settings of `ResidualSum`."""

    first: NonNegative = 1.0
    """Weight of the loss |rin − z_0|² of the first state."""
    chunks: NonNegative = 1.0
    """Weight of the loss |chunks − r|² of the chunks."""
    image: NonNegative = 0.1
    """λ, the weight of the loss of the image that X0out computes from the sum."""
    loss: Distance = field(default_factory=SquaredError)
    """Distance between that image and x0: `mse` (published), `pseudo-huber`, `l1`, `lpips` or
    `features`."""
    last: NonNegative = 0.0
    """Weight of the loss |rin + Σ chunks − z|², with z the last state of the ring. With
    student.backbone.chunks = 0 only this loss and that of the image are used."""
    trunk: Literal["own", "circuit"] = "own"
    """Initial weights of the student's U-Net: random (`own`), or those of the `circuit`'s
    encoder."""


class ResidualSum(Method[ResidualSumConfig]):
    """Train a one-step network on the recorded states and image of a circuit's ring."""

    reads = frozenset({"rings"})
    starts_from_noise = True

    def __init__(self, config: ResidualSumConfig, task: Task) -> None:
        if task.teacher is None:
            raise InputError(
                'method "residual_sum" distils a circuit, and the recipe has no teacher: set '
                "teacher.load to the circuit's run"
            )
        circuit = Circuit(task.teacher.denoiser)
        student, net = task.student, task.student.backbone
        if not isinstance(net, ResidualsNet) or not isinstance(student.parametrization, Clean):
            raise InputError(
                'method "residual_sum" needs student.backbone.name = "residuals" and '
                'student.parametrization.name = "x0", because the network\'s output is the image'
            )
        super().__init__(config, task)
        end = circuit.denoiser.network_inputs(circuit.denoiser.span[0], net.end.expand(1, 1))[1]
        net.copy_readout(circuit.net, end.squeeze())
        if config.trunk == "circuit":
            net.copy_encoder(circuit.net)

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def check(self, streams: Mapping[str, Any]) -> None:
        """Raise InputError for rings with another number of chunks or shape of states."""
        assert isinstance(self.student.backbone, ResidualsNet)
        rings, config = streams["rings"], self.student.backbone.config
        expected, actual = config.state.shape(self.spec.shape), rings.state_shape
        if actual != expected:
            raise InputError(
                f"the states in the store of pairs.load have shape {actual}, but those of the "
                f"student's network have {expected}: record rings of the teacher"
            )
        if config.chunks not in (0, rings.chunks):
            raise InputError(
                f"the store of pairs.load contains {rings.chunks} chunks of each ring, but "
                f"student.backbone.chunks is {config.chunks}; set it to {rings.chunks}, or to 0 to "
                "train on the last state only"
            )

    def student_loss(self, batch: Batch) -> Loss:
        """Weighted sum of the losses of first state, chunks, last state and image."""
        rings, net = batch.rings, self.student.backbone
        assert isinstance(net, ResidualsNet)
        first, chunks, last, image = predict_states(self.student, rings.noise, rings.cond)
        errors = {
            "last": squared_error(last, rings.first + rings.chunks.sum(dim=1)).mean(),
            "image": self.config.loss(image, rings.x0).mean(),
        }
        if net.config.chunks:
            errors["first"] = squared_error(first, rings.first).mean()
            errors["chunks"] = squared_error(chunks, rings.chunks).mean()
        terms = [getattr(self.config, name) * error for name, error in errors.items()]
        return Loss(torch.stack(terms).sum(), errors)

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=FixedGrid(((self.student.span[1],),)))


def predict_states(
    student: Denoiser, noise: Tensor, cond: Condition | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predict from `noise` the first state (b, C, H, W), the chunks (b, K, C, H, W), their sum, the
    last state (b, C, H, W), and the image (b, c, h, w)."""
    net, start = student.backbone, student.span[1]
    assert isinstance(net, ResidualsNet)
    scale, level = student.network_inputs(start, noise)
    with student.precision_context(noise):
        first, chunks = net.parts(scale * student.process.start(noise, start), level, cond)
    first, chunks = first.to(noise.dtype), chunks.to(noise.dtype)
    last = first + chunks.sum(dim=1)
    with student.precision_context(noise):
        image = net.image(last)
    return first, chunks, last, image.to(noise.dtype)
