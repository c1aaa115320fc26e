"""Folders of diffusers: a stock pipeline where one samples as we do, else a pipeline of our own."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from fewstep.errors import InputError
from fewstep.export.base import Exporter
from fewstep.export.checking import TOLERANCE
from fewstep.export.diffusers.card import model_card
from fewstep.export.diffusers.checks import (
    STOCK_DIFFERENCE,
    equal_weights,
    network_difference,
    own_difference,
    quiet,
    start_factor,
    stock_difference,
)
from fewstep.export.diffusers.scheduler import describe_training, save_training, stock_schedulers
from fewstep.export.diffusers.unet import (
    export_network,
    load_options,
    make_unet,
    unet_config,
)
from fewstep.export.linear import sampling_program
from fewstep.export.source import Source, check_plain_guidance
from fewstep.export.tokenizer import check_exportable, tokenizer_table
from fewstep.formatting import quantity
from fewstep.guidance import guidance_weight, negative_prompt, unguided

HERE = Path(__file__).parent
OWN = "FewStepPipeline"


@dataclass(frozen=True)
class DiffusersExport(Exporter):
    """A folder for `DiffusionPipeline.from_pretrained`, with a model card.

    Its network is a `UNet2DModel` with our weights, or else a program of `torch.export`.
    """

    extra: ClassVar[tuple[str, ...]] = ("diffusers",)

    def write(self, source: Source, folder: Path) -> dict[str, Any]:
        check_supported(source)
        with quiet():
            checks = _write_stock(source, folder) or _write_own(source, folder)
            checks |= _write_training(source, folder, stock=checks["pipeline"] != OWN)
        (folder / "README.md").write_text(model_card(source, checks), encoding="utf-8")
        return checks


def check_supported(source: Source) -> None:
    """Raise InputError for a generator or type that a folder of diffusers cannot hold."""
    shape, dtype = source.generator.spec.shape, source.dtype
    check_exportable(source.generator.spec)
    check_plain_guidance(source, "a pipeline of diffusers")
    if len(shape) != 3:
        raise InputError(
            f"pipelines of diffusers make images, and samples of this generator have the shape "
            f"{shape}: use --to torch or onnx"
        )
    if dtype == "int8":
        raise InputError(
            "--to diffusers stores f32 or f16, not int8, which diffusers has no file format for: "
            "leave --dtype out, or use --to onnx"
        )


def _write_stock(source: Source, folder: Path) -> dict[str, Any]:
    """Write a stock pipeline if its images are ours. Returns the checks; empty if there is none."""
    import diffusers

    generator, settings = source.generator, unet_config(source.generator.denoiser.backbone)
    if settings is None or generator.spec.classes:
        return {}
    if any(abs(start_factor(generator, n) - 1) > 1e-3 for n in source.steps):
        return {}
    exact = make_unet(generator.denoiser.backbone, settings, "f32")
    for name, scheduler in stock_schedulers(generator, source.steps):
        kind = getattr(diffusers, name)
        trial = kind(exact, scheduler)
        if max(stock_difference(trial, generator, n) for n in source.steps) > STOCK_DIFFERENCE:
            continue
        unet = make_unet(generator.denoiser.backbone, settings, source.dtype)
        kind(unet, scheduler).save_pretrained(folder, **load_options(source))
        pipeline = kind.from_pretrained(folder, **load_options(source))
        differences = {n: stock_difference(pipeline, generator, n) for n in source.steps}
        return _checks(name, pipeline, source, differences)
    return {}


def _write_own(source: Source, folder: Path) -> dict[str, Any]:
    """Write `FewStepPipeline` with its network and programs. Returns the checks."""
    from diffusers import DiffusionPipeline

    _save_own(source, folder)
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            folder, trust_remote_code=True, **load_options(source)
        )
    except OSError as error:  # it copies the code of the pipeline into its cache
        problem = error.strerror or str(error)
        raise InputError(
            f"diffusers cannot load what was written: {problem}; set HF_MODULES_CACHE to a folder "
            "that can be written"
        ) from error
    differences = {n: own_difference(pipeline, source.generator, n) for n in source.steps}
    return _checks(OWN, pipeline, source, differences)


def _save_own(source: Source, folder: Path) -> None:
    """Write the files of our pipeline."""
    import diffusers

    generator, spec = source.generator, source.generator.spec
    backbone = unguided(generator.denoiser.backbone)
    settings, pace = unet_config(backbone), 1.0
    if settings is not None:
        make_unet(backbone, settings, source.dtype).save_pretrained(
            folder / "unet", **load_options(source)
        )
        component, pace = ["diffusers", "UNet2DModel"], backbone.config.pace
    else:
        export_network(generator, source.dtype).save_pretrained(folder / "unet")
        shutil.copy(HERE / "exported_network.py", folder / "unet")
        component = ["exported_network", "ExportedNetwork"]
    shutil.copy(HERE / "pipeline.py", folder)
    guided = generator.denoiser.backbone
    index = {
        "_class_name": ["pipeline", OWN],
        "_diffusers_version": diffusers.__version__,
        "unet": component,
        "shape": list(spec.shape),
        "num_classes": spec.classes,
        "class_names": list(spec.class_names),
        "guidance_scale": guidance_weight(guided),
        "prompts": list(spec.prompts),
        "negative_prompt": negative_prompt(guided),
        "text": tokenizer_table(spec),
        "programs": {str(steps): _program(source, steps, pace) for steps in source.steps},
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=1) + "\n")


def _program(source: Source, steps: int, pace: float) -> dict[str, Any]:
    """The program of a sample, with the network's factor of the levels applied to them."""
    program = sampling_program(source.generator, steps)
    for instruction in program["instructions"]:
        if "network" in instruction:
            instruction["level"] *= pace
    return program


def _write_training(source: Source, folder: Path, *, stock: bool) -> dict[str, Any]:
    """Write what the network was trained for, and read the folder by `diffusers:` again."""
    from fewstep.pretrained.diffusers import read_diffusers

    denoiser = source.generator.denoiser
    training = describe_training(denoiser)
    if training is None or unet_config(unguided(denoiser.backbone)) is None:
        return {}
    if not stock:
        save_training(training, folder / "scheduler")
    again = read_diffusers(str(folder))
    return {"network read by diffusers:, difference": network_difference(denoiser, again)}


def _checks(
    name: str, pipeline: Any, source: Source, differences: Mapping[int, float]
) -> dict[str, Any]:
    """What was checked of a pipeline that was loaded from its files.

    Raises: InputError if its weights or images are not ours.
    """
    checks: dict[str, Any] = {"pipeline": name}
    backbone = unguided(source.generator.denoiser.backbone)
    if unet_config(backbone) is not None:
        checks["weights equal bit for bit"] = equal = equal_weights(pipeline.unet, backbone)
        if not equal:
            raise InputError(
                "diffusers loads other weights than those that were written: install another "
                "version of it"
            )
    for steps, value in differences.items():
        if not value <= TOLERANCE:
            raise InputError(
                f"images of diffusers in {quantity(steps, 'step')} differ by {value:.2g} from those"
                f" of fewstep, more than {TOLERANCE:g}: choose another --sampler or number "
                "of --steps"
            )
        checks[f"largest difference in {quantity(steps, 'step')}"] = value
    return checks
