"""The trajectory of a request's samples, and the velocities around the points of a toy."""

import torch
from torch import Tensor

from fewstep.condition import Condition
from fewstep.noise import RowNoise
from fewstep.sampling import StepContext
from fewstep.studio.workshop import Request
from fewstep.trajectory import Trajectory, trace


def travel(request: Request) -> Trajectory:
    """The trajectory of a request's samples."""
    generator = request.generator()
    cond = request.cond()
    return trace(
        generator,
        request.noise().to(generator.device),
        steps=request.steps,
        cond=cond and cond.to(generator.device),
        seed=request.seeds(),
    )


@torch.inference_mode()
def arrows(request: Request, t: float, points: Tensor) -> Tensor:
    """The velocity (n, 2) of a toy's process at each of `points` (n, 2) at time t."""
    generator = request.generator()
    labels = request.labels and request.labels[:1] * len(points)
    cond = None if labels is None else Condition(torch.tensor(labels, device=generator.device))
    context = StepContext(generator.denoiser, cond, RowNoise(range(len(points))))
    return context.predict(points.to(generator.device), t).velocity.cpu()
