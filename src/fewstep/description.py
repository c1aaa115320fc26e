"""Build generators of their descriptions, the results of `Generator.describe`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fewstep import tables
from fewstep.autoencoders import DecoderDescription
from fewstep.backbones import BackboneConfig, build_backbone
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.guidance import check_guidance
from fewstep.parametrization import Parametrization
from fewstep.process import Process
from fewstep.ranges import NonNegative, Probability
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Step
from fewstep.times import Grid


@dataclass(frozen=True)
class _Description:
    spec: SampleSpec
    backbone: BackboneConfig
    guidance: NonNegative
    process: Process
    parametrization: Parametrization
    step: Step
    grid: Grid
    guidance_interval: tuple[Probability, Probability] | None = None
    negative: str = ""
    decoder: DecoderDescription | None = None
    is_flow_map: bool = False
    span: tuple[Probability, Probability] | None = None
    packages: dict[str, str] | None = None


def from_description(
    description: dict[str, Any],
    *,
    allow_code: Collection[str] | None = None,
    shapes: Mapping[str, torch.Size] | None = None,
) -> Generator:
    """A generator with untrained weights, built from the result of `Generator.describe`.

    `allow_code` lists the modules that addresses in the description may import; None allows all.
    `shapes` are those of the weights by name, as in `state_dict`: a network of other weights is not
    built. Raises InputError for that, and for a description that names unknown or forbidden
    classes.
    """
    fields = tables.from_table(_Description, description, "generator", allow_code=allow_code)
    check_guidance(fields.guidance)
    if shapes is not None:
        _check_weights(fields, shapes)
    backbone = build_backbone(fields.backbone, **_inputs(fields.spec))
    denoiser = Denoiser(
        backbone,
        fields.process,
        fields.parametrization,
        is_flow_map=fields.is_flow_map,
        span=fields.span,
    )
    decoder = fields.decoder and fields.decoder.build()
    generator = Generator(
        denoiser, fields.spec, grid=fields.grid, step=fields.step, decoder=decoder
    )
    interval, negative = fields.guidance_interval, fields.negative
    if fields.guidance == 1.0 and not (negative or interval):
        return generator
    return generator.with_guidance(fields.guidance, interval=interval, negative=negative)


def _inputs(spec: SampleSpec) -> dict[str, Any]:
    """What a network for `spec` receives, as arguments of `build_backbone`."""
    return {
        "shape": spec.shape,
        "classes": spec.classes,
        "text": None if spec.text is None else spec.text.input,
    }


def _check_weights(fields: _Description, shapes: Mapping[str, torch.Size]) -> None:
    """Raise InputError, without using memory, for a network whose weights are not of `shapes`."""
    from fewstep.backbones.outline import find_misfit, outline, outline_of

    network = outline(
        fields.backbone,
        **_inputs(fields.spec),
        tensors=len(shapes),
    )
    prefix = "denoiser.backbone." + "backbone." * (fields.guidance != 1.0)
    decoder, inside = fields.decoder, dict[str, torch.Size]()
    if decoder is not None:
        inside = {name: size for name, size in shapes.items() if name.startswith("decoder.")}
    rest = {name: size for name, size in shapes.items() if name not in inside}
    misfit = find_misfit(network, rest, prefix)
    if decoder is not None and not decoder.config.is_pinned and not misfit:
        expected = outline_of(decoder.build, decoder.config, tensors=len(shapes))
        misfit = find_misfit(expected, inside, "decoder.")
    if misfit:
        raise InputError(f"its weights do not fit its description: {misfit} of this description")
