"""Small generators with random weights for tests of exports."""

import torch

from fewstep.backbones import MLPConfig, UNetConfig
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec

UNET = UNetConfig(channels=(8, 16), layers=1, attention=(4,), groups=4, pace=0.03)


def unet_generator(
    *, step=None, grid=None, classes=3, shape=(1, 8, 8), flow_map=False, process=None,
    parametrization=None, seed=0, config=UNET,
):  # fmt: skip
    """A class-conditional generator of images, none of whose weights are zero."""
    names = ("zero", "one", "<b>two</b>", *map(str, range(3, 10)))[:classes]
    spec = SampleSpec(shape, classes, names)
    return _generator(config, spec, step, grid, flow_map, process, parametrization, seed)


def point_generator(*, step=None, seed=0):
    """An unconditional generator of points in the plane."""
    config = MLPConfig(width=16, depth=1)
    return _generator(config, SampleSpec((2,)), step, None, False, None, None, seed)


def _generator(config, spec, step, grid, flow_map, process, parametrization, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = config.build(shape=spec.shape, classes=spec.classes)
        denoiser = Denoiser(backbone, process or Flow(), parametrization or Velocity())
        denoiser = denoiser.as_flow_map() if flow_map else denoiser
        for parameter in denoiser.parameters():
            if not parameter.any():  # the layers that training would begin from zero
                torch.nn.init.normal_(parameter, std=0.1)
    return Generator(denoiser.eval().requires_grad_(False), spec, grid=grid, step=step)
