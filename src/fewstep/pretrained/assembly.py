"""Build a generator from a config and the tensors of somebody else's file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fewstep.backbones import Backbone, BackboneConfig
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator, SampleSpec
from fewstep.parametrization import Parametrization
from fewstep.process import Process
from fewstep.sampling import Step
from fewstep.times import Grid


def build_backbone(
    config: BackboneConfig,
    state: Mapping[str, Tensor],
    path: Path,
    *,
    shape: tuple[int, ...],
    classes: int = 0,
) -> Backbone:
    """The network of a config with the tensors `state`, in float32.

    Raises: InputError if the file at `path` lacks a tensor, or has others than the network.
    """
    try:
        # without memory, and without draws from torch's generator
        with torch.device("meta"):
            backbone = config.build(shape=shape, classes=classes)
    except InputError as error:
        raise InputError(f"{path}: our network does not support these weights: {error}") from error
    expected = backbone.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        needed, actual = (_shape(tensors.get(name)) for tensors in (expected, state))
        if needed != actual:
            raise InputError(
                f"{path} does not fit its settings: {name} is {actual} in the file, but {needed} "
                "in a network with these settings"
            )
    weights = {name: state[name].float().clone() for name in expected}
    backbone.load_state_dict(weights, assign=True)
    return backbone


def assemble(
    backbone: Backbone,
    process: Process,
    parametrization: Parametrization,
    *,
    step: Step | None = None,
    grid: Grid | None = None,
    span: tuple[float, float] | None = None,
) -> Generator:
    """A generator of the network, without gradients and in evaluation mode."""
    denoiser = Denoiser(backbone, process, parametrization, span=span)
    spec = SampleSpec(backbone.shape, backbone.classes)
    generator = Generator(denoiser, spec, grid=grid, step=step)
    return generator.eval().requires_grad_(False)


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else str(tuple(tensor.shape))
