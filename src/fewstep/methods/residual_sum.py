"""One step by a sum: predict from noise what a circuit's updates add up to.

A circuit's ring is nearly a sum: z_0 = Rin(noise) and K chunks r_k, each what 1/K of the updates
have added, give its last latent exactly, z_0 + Σ r_k. Recorded beside the noise, they teach

    loss = |rin − z_0|² + |chunks − r|² + λ·|X0out(rin + Σ chunks) − x0|²

with X0out the circuit's own head, frozen. What comes out is a one-step generator. Denoising
Circuits for 1-Step Diffusion (shuntama/denoising-circuits); docs/circuits.md.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from fewstep.backbones import ResidualsNet
from fewstep.circuit import Circuit
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, Subject
from fewstep.losses import DistanceConfig, SquareError, square_error
from fewstep.methods.base import Batch, Loss, Method, Turn
from fewstep.parametrization import Clean
from fewstep.times import FixedGrid


@dataclass(frozen=True)
class ResidualSumConfig:
    first: float = 1.0
    """Weight of the first latent's error."""
    chunks: float = 1.0
    """Weight of the chunks' error."""
    image: float = 0.1
    """λ, of the image that is read from the sum."""
    loss: DistanceConfig = field(default_factory=SquareError)
    """Distance of that image: `mse`, as published, `pseudo-huber`, `l1`, `lpips` or `features`."""
    last: float = 0.0
    """Weight of the sum's own error, |rin + Σ chunks − z|²; all there is for a network of no
    chunks."""
    trunk: Literal["own", "circuit"] = "own"
    """Whose weights the student's U-Net starts from: as it was made, or the encoder's."""


class ResidualSum(Method):
    """Fit the recorded latents of a circuit's ring, and the image of their sum."""

    Config = ResidualSumConfig
    reads = frozenset({"latents"})
    config: ResidualSumConfig

    def __init__(
        self, config: Any, student: Denoiser, subject: Subject, *, teacher: Generator | None = None
    ) -> None:
        if teacher is None:
            raise InputError("residual_sum distils a circuit: give its run as [teacher] load")
        circuit = Circuit(teacher.denoiser)
        net = student.backbone
        if not isinstance(net, ResidualsNet) or not isinstance(student.parametrization, Clean):
            raise InputError(
                'residual_sum trains student.backbone.name = "residuals" whose '
                'student.parametrization.name is "clean": what it says is the image'
            )
        super().__init__(config, student, subject, teacher=teacher)
        end = circuit.denoiser.asked(circuit.denoiser.span[0], net.end.expand(1, 1))[1]
        net.adopt(circuit.net, end.squeeze())
        if config.trunk == "circuit":
            net.follow_encoder(circuit.net)

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def student_loss(self, batch: Batch) -> Loss:
        told, student, net = batch.latents, self.student, self.student.backbone
        assert isinstance(net, ResidualsNet)
        given = told.chunks.shape[1]
        if net.config.chunks not in (0, given):
            raise InputError(
                f"the store holds {given} chunks of each ring: student.backbone.chunks is "
                f"{net.config.chunks}; let it be {given}, or 0 for the last latent alone"
            )
        start = student.span[1]
        _, sigma = student.process.at(start, like=told.noise)
        scale, level = student.asked(start, told.noise)
        with student.casting(told.noise):
            first, chunks = net.parts(scale * sigma * told.noise, level, told.cond)
            last = first + chunks.sum(dim=1)
            image = net.image(last)
        wanted = told.first + told.chunks.sum(dim=1)
        parts = {
            "first": square_error(first, told.first).mean(),
            "last": square_error(last, wanted).mean(),
            "image": self.config.loss(image, told.x0).mean(),
        }
        if net.config.chunks:
            parts["chunks"] = square_error(chunks, told.chunks).mean()
        weighted = [getattr(self.config, name) * part for name, part in parts.items()]
        return Loss(torch.stack(weighted).sum(), parts)

    def generator(self) -> Generator:
        return Generator(self.student, self.subject, grid=FixedGrid(((self.student.span[1],),)))
