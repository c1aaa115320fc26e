"""Build a generator from a config and the tensors of somebody else's file."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fewstep.backbones import Backbone, BackboneConfig
from fewstep.backbones.outline import find_misfit, outline
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.parametrization import Parametrization
from fewstep.process import Process
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Step
from fewstep.tables import check_fields
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
        check_fields(config, "the network")
        SampleSpec(shape, classes)
        # without memory, and without draws from torch's generator
        backbone = outline(config, shape=shape, classes=classes, text=None, tensors=len(state))
    except InputError as error:
        raise InputError(f"{path}: our network does not support these weights: {error}") from error
    misfit = find_misfit(backbone, {name: value.shape for name, value in state.items()})
    if misfit:
        raise InputError(f"{path} does not fit its settings: {misfit} with these settings")
    weights = {name: state[name].float().clone() for name in backbone.state_dict()}
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
    """A generator of the network, without gradients and in evaluation mode.

    Raises: InputError for settings out of their range.
    """
    for part in (process, parametrization, step, grid):
        if part is not None:
            check_fields(part, f"the checkpoint's {part.noun}")
    denoiser = Denoiser(backbone, process, parametrization, span=span)
    spec = SampleSpec(backbone.shape, backbone.classes)
    generator = Generator(denoiser, spec, grid=grid, step=step)
    return generator.eval().requires_grad_(False)
