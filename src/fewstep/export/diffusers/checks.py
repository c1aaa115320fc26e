"""Comparison of images and networks of diffusers with ours."""

import warnings
from collections import deque
from collections.abc import Generator as Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.drawing import generate_values
from fewstep.generator import Generator
from fewstep.guidance import unguided
from fewstep.noise import RowNoise
from fewstep.sampling import StepContext, check_path, iterate

ROWS = 7
STOCK_DIFFERENCE = 1e-4
"""Largest difference of pixels in [0, 1] at which a stock pipeline samples as we do."""


class TorchNoise(RowNoise):
    """Standard normal noise of one torch generator for all rows, as diffusers draws it."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator, self.draws = generator, 0

    def like(self, x: Tensor) -> Tensor:
        self.draws += 1
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def start_factor(generator: Generator, steps: int) -> float:
    """The standard deviation of the noise at which our samples start; 1 in diffusers."""
    t = float(generator.grid(steps, generator.denoiser)[0])
    sigma = generator.denoiser.process.sigma(torch.tensor(t, dtype=torch.float64))
    return float(sigma) * generator.grid.start_scale(t, generator.denoiser)


@torch.inference_mode()
def stock_difference(pipeline: Any, generator: Generator, steps: int) -> float:
    """The largest difference of pixels between a stock pipeline and ours, from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    draw, denoiser = torch.Generator(), generator.denoiser
    theirs: Tensor = pipeline(
        ROWS, generator=draw.manual_seed(0), num_inference_steps=steps, output_type="pt"
    ).images
    x = torch.randn(ROWS, *generator.spec.shape, generator=draw.manual_seed(0))
    times = check_path(denoiser, generator.grid(steps, denoiser))
    table = denoiser.tabulate([*times, denoiser.span[0]], like=x)
    context = StepContext(denoiser, None, TorchNoise(draw), table=table)
    images = deque(iterate(generator.step, context, x, times), maxlen=1).pop()
    return (theirs - (images.clamp(-1, 1) + 1) / 2).abs().max().item()


def own_difference(pipeline: Any, generator: Generator, steps: int) -> float:
    """The largest difference of pixels between `FewStepPipeline` and ours, from the same seed."""
    pipeline.set_progress_bar_config(disable=True)
    ((_, images),) = generate_values(generator, ROWS, steps=steps)
    theirs: Tensor = pipeline(ROWS, num_inference_steps=steps, output_type="pt").images
    return (theirs - (images.clamp(-1, 1) + 1) / 2).abs().max().item()


def equal_weights(unet: nn.Module, backbone: nn.Module) -> bool:
    """Whether two networks have the same weights by the same names."""
    ours, theirs = backbone.state_dict(), unet.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


@torch.inference_mode()
def network_difference(denoiser: Denoiser, again: Generator) -> float:
    """The largest difference of the outputs of a network and one that was read from files."""
    denoiser = denoiser.replace(backbone=unguided(denoiser.backbone))
    other, classes = again.denoiser.under(denoiser.process), again.spec.classes
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, *again.spec.shape, generator=draw)
    cond = Condition(torch.arange(ROWS) % (classes + 1) - 1) if classes else None
    low, high = denoiser.span
    times = [low + share * (high - low) for share in (0.25, 0.5, 0.75)]
    differences = [denoiser(x, t, cond=cond).output - other(x, t, cond=cond).output for t in times]
    return torch.stack(differences).abs().max().item()


@contextmanager
def quiet() -> Iterator[None]:
    """No bars, notes and warnings, and no draws from torch's default generator, within a block."""
    from diffusers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(), warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
