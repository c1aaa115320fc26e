"""Distil a circuit into one step that predicts the sum of its updates.

The last state of a circuit's ring is z_0 + Σ r_k exactly, where z_0 = Rin(noise), and each of the K
chunks r_k is the sum of what 1/K of the updates add. From these, recorded beside the noise:

    loss = |rin − z_0|² + |chunks − r|² + λ·|X0out(rin + Σ chunks) − x0|²

with X0out the circuit's own read-out, frozen. After Denoising
Circuits for 1-Step Diffusion (shuntama/denoising-circuits); docs/circuits.md.
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
from fewstep.times import FixedGrid


@dataclass(frozen=True)
class ResidualSumConfig:
    first: float = 1.0
    """Weight of the error of the first state, rin."""
    chunks: float = 1.0
    """Weight of the error of the chunks."""
    image: float = 0.1
    """λ, weight of the error of the image read from the sum."""
    loss: Distance = field(default_factory=SquaredError)
    """Distance of that image: `mse` (published), `pseudo-huber`, `l1`, `lpips` or `features`."""
    last: float = 0.0
    """Weight of the error of the sum, |rin + Σ chunks − z|². A network with chunks = 0 learns only
    from this and the image."""
    trunk: Literal["own", "circuit"] = "own"
    """Initial weights of the student's U-Net: its own, or those of the circuit's encoder."""


class ResidualSum(Method[ResidualSumConfig]):
    """Train a one-step network on the recorded states of a circuit's ring, and on its image."""

    reads = frozenset({"rings"})

    def __init__(self, config: ResidualSumConfig, task: Task) -> None:
        if task.teacher is None:
            raise InputError("residual_sum distils a circuit: set teacher.load to its run")
        circuit = Circuit(task.teacher.denoiser)
        student, net = task.student, task.student.backbone
        if not isinstance(net, ResidualsNet) or not isinstance(student.parametrization, Clean):
            raise InputError(
                'residual_sum needs student.backbone.name = "residuals" and '
                'student.parametrization.name = "clean", because the network outputs the image'
            )
        super().__init__(config, task)
        end = circuit.denoiser.network_inputs(circuit.denoiser.span[0], net.end.expand(1, 1))[1]
        net.copy_readout(circuit.net, end.squeeze())
        if config.trunk == "circuit":
            net.copy_encoder(circuit.net)

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def check(self, streams: Mapping[str, Any], *, teacher: str | None) -> None:
        """Raise InputError for rings of another circuit, or with another number of chunks."""
        assert isinstance(self.student.backbone, ResidualsNet)
        rings, config = streams["rings"], self.student.backbone.config
        if rings.source not in (None, teacher):
            raise InputError(
                "the store holds rings of another circuit than the teacher: record the teacher's"
            )
        expected, actual = config.state.shape(self.spec.shape), rings.state_shape
        if actual != expected:
            raise InputError(
                f"the store's states have shape {actual}, but the circuit's have {expected}: "
                "record the teacher's rings"
            )
        if config.chunks not in (0, rings.chunks):
            raise InputError(
                f"the store holds {rings.chunks} chunks of each ring, but student.backbone.chunks "
                f"is {config.chunks}; set it to {rings.chunks}, or to 0 for the last state alone"
            )

    def student_loss(self, batch: Batch) -> Loss:
        """Weighted errors of the first state, the chunks, their sum, and its image."""
        rings, net = batch.rings, self.student.backbone
        assert isinstance(net, ResidualsNet)
        first, chunks, last, image = parts(self.student, rings.noise, rings.cond)
        errors = {
            "last": squared_error(last, rings.first + rings.chunks.sum(dim=1)).mean(),
            "image": self.config.loss(image, rings.x0).mean(),
        }
        if net.config.chunks:
            errors["first"] = squared_error(first, rings.first).mean()
            errors["chunks"] = squared_error(chunks, rings.chunks).mean()
        weighted = [getattr(self.config, name) * error for name, error in errors.items()]
        return Loss(torch.stack(weighted).sum(), errors)

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=FixedGrid(((self.student.span[1],),)))


def parts(
    student: Denoiser, noise: Tensor, cond: Condition | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Predict from `noise` the first state (b, c, h, w), chunks (b, k, c, h, w), sum and image."""
    net, start = student.backbone, student.span[1]
    assert isinstance(net, ResidualsNet)
    scale, level = student.network_inputs(start, noise)
    with student.autocast_context(noise):
        first, chunks = net.parts(scale * student.process.start(noise, start), level, cond)
    first, chunks = first.to(noise.dtype), chunks.to(noise.dtype)
    last = first + chunks.sum(dim=1)
    with student.autocast_context(noise):
        image = net.image(last)
    return first, chunks, last, image.to(noise.dtype)
