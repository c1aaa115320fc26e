"""One step by a sum: predict from noise what a circuit's updates add up to.

A circuit's ring is nearly a sum: z_0 = Rin(noise) and K chunks r_k, each what 1/K of the updates
have added, give its last latent exactly, z_0 + Σ r_k. Recorded beside the noise, they teach

    loss = |rin − z_0|² + |chunks − r|² + λ·|X0out(rin + Σ chunks) − x0|²

with X0out the circuit's own head, frozen. What comes out is a one-step generator. Denoising
Circuits for 1-Step Diffusion (shuntama/denoising-circuits); docs/circuits.md.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fewstep.backbones import ResidualsNet
from fewstep.circuit import Circuit
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, SampleSpec
from fewstep.losses import DistanceConfig, SquaredError, squared_error
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
    loss: DistanceConfig = field(default_factory=SquaredError)
    """Distance of that image: `mse`, as published, `pseudo-huber`, `l1`, `lpips` or `features`."""
    last: float = 0.0
    """Weight of the sum's own error, |rin + Σ chunks − z|². A network of no chunks has this and the
    image alone."""
    trunk: Literal["own", "circuit"] = "own"
    """Whose weights the student's U-Net starts from: its own, or the encoder's."""


class ResidualSum(Method):
    """Fit the recorded latents of a circuit's ring, and the image of their sum."""

    Config = ResidualSumConfig
    reads = frozenset({"rings"})
    config: ResidualSumConfig

    def __init__(
        self, config: Any, student: Denoiser, spec: SampleSpec, *, teacher: Generator | None = None
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
        super().__init__(config, student, spec, teacher=teacher)
        end = circuit.denoiser.network_inputs(circuit.denoiser.span[0], net.end.expand(1, 1))[1]
        net.adopt(circuit.net, end.squeeze())
        if config.trunk == "circuit":
            net.follow_encoder(circuit.net)

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("student", self.student_loss)

    def check(self, streams: Mapping[str, Any], *, teacher: str | None) -> None:
        """Refuse rings of another circuit, or of as many chunks as the student does not tell."""
        assert isinstance(self.student.backbone, ResidualsNet)
        told, config = streams["rings"], self.student.backbone.config
        if told.source not in (None, teacher):
            raise InputError("the store's rings are another circuit's: record the teacher's own")
        wanted, there = config.latent.shape(self.spec.shape), tuple(told.latent)
        if there != wanted:
            raise InputError(f"the store's latents are {there}, the circuit's {wanted}")
        if config.chunks not in (0, told.chunks):
            raise InputError(
                f"the store holds {told.chunks} chunks of each ring: student.backbone.chunks is "
                f"{config.chunks}; let it be {told.chunks}, or 0 for the last latent alone"
            )

    def student_loss(self, batch: Batch) -> Loss:
        told, net = batch.rings, self.student.backbone
        assert isinstance(net, ResidualsNet)
        first, chunks, last, image = parts(self.student, told.noise, told.cond)
        wanted = told.first + told.chunks.sum(dim=1)
        errors = {
            "last": squared_error(last, wanted).mean(),
            "image": self.config.loss(image, told.x0).mean(),
        }
        if net.config.chunks:
            errors["first"] = squared_error(first, told.first).mean()
            errors["chunks"] = squared_error(chunks, told.chunks).mean()
        weighted = [getattr(self.config, name) * error for name, error in errors.items()]
        return Loss(torch.stack(weighted).sum(), errors)

    def generator(self) -> Generator:
        return Generator(self.student, self.spec, grid=FixedGrid(((self.student.span[1],),)))


def parts(
    student: Denoiser, noise: Tensor, cond: Condition | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First latent (b, c, h, w), chunks (b, k, c, h, w), their sum, and its image, from `noise`."""
    net, start = student.backbone, student.span[1]
    assert isinstance(net, ResidualsNet)
    _, sigma = student.process.at(start, like=noise)
    scale, level = student.network_inputs(start, noise)
    with student.autocast_context(noise):
        told = net.parts(scale * sigma * noise, level, cond)
    first, chunks = (part.to(noise.dtype) for part in told)
    last = first + chunks.sum(dim=1)
    with student.autocast_context(noise):
        image = net.image(last)
    return first, chunks, last, image.to(noise.dtype)
