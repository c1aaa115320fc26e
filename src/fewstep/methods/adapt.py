"""Adaptation: train a copied network to predict another quantity than its original.

The copy has the original's weights and inputs, but its output now means a·x0 + b·eps with other
coefficients (a, b), such as those of v where the original predicts the noise. With ε the error of
the original's output, its image and noise have the errors c·ε and c'·ε; c is sigma/alpha for an eps
network, and c' is alpha/sigma for one that predicts the image. Where both are small the original is
a better target than one image with its noise, as it predicts their mean:

    target = a·x0' + b·eps' of the original   where c, c' <= trust
             a·x0 + b·eps of the data         elsewhere
    loss   = |output − target|²

This is not a method of recipes. A run starts with it if its student copies a network and
`student.parametrization` is set to another one than the network's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import Loss, Method, Task, Turn
from fewstep.methods.batch import Batch
from fewstep.process import broadcast_to
from fewstep.times import Density, Uniform


@dataclass(frozen=True)
class AdaptConfig:
    """Settings of `Adapt`."""

    density: Density = field(default_factory=Uniform)
    """Distribution of the training times."""
    trust: float = 3.0
    """Largest c and c' at which the original's prediction is the target; 0 means never."""


class Adapt(Method[AdaptConfig]):
    """Train the student to predict what its original predicts, in another parametrization.

    The player is called `adapt`. The teacher of the task is the original, without guidance.
    """

    reads = frozenset({"images"})
    uses_first_image = False

    @property
    def original(self) -> Denoiser:
        """The network that the student's weights come from, under the student's process."""
        assert self.teacher
        return self.teacher.denoiser

    def __init__(self, config: AdaptConfig, task: Task) -> None:
        super().__init__(config, task)
        times = torch.linspace(*self.student.span, 1001, dtype=torch.float64)
        at = self.original.coefficients(times, like=times.unsqueeze(1))
        factors = torch.stack([factor.abs().flatten() for _, factor in (at.x0, at.eps)])
        is_trusted = (factors <= config.trust).all(0)
        self.last_trusted = max(times[is_trusted].tolist(), default=-1.0)
        lower = times[~is_trusted & (times < self.last_trusted)]
        self.first_trusted = max(lower.tolist(), default=-1.0)

    @property
    def players(self) -> Mapping[str, nn.Module]:
        return {"adapt": self.student}

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("adapt", self.adapt_loss)

    def adapt_loss(self, batch: Batch) -> Loss:
        x0, cond = batch.images.x0, batch.images.cond
        t = self.config.density.times(batch.rand(), self.student)
        eps = batch.randn_like(x0)
        x_t = self.student.process.add_noise(x0, eps, t)
        prediction = self.student(x_t, t, cond=cond)
        with torch.no_grad():
            original = self.original(x_t, t, cond=cond)
            trusted = (t > self.first_trusted) & (t <= self.last_trusted)
            target = torch.where(
                broadcast_to(trusted, x0) > 0,
                prediction.target(original.x0, original.eps),
                prediction.target(x0, eps),
            )
        return Loss(squared_error(prediction.output, target).mean())

    def generator(self) -> Generator:
        return Generator(self.student, self.spec)
