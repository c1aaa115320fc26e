"""`fewstep convert SOURCE --out FILE`: any generator as one self-describing weights file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.cli import console
from fewstep.errors import InputError
from fewstep.formatting import quantity


@dataclass(frozen=True)
class Options:
    """Write a run, or a checkpoint of another project, as one safetensors file that describes
    itself: `fewstep` loads it without options, and without the original file."""

    source: Annotated[str, tyro.conf.Positional, console.run_option(metavar="SOURCE")]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The .safetensors file to write."""
    weights: Literal["ema", "raw", "best"] = "ema"
    """Which weights of a run: averaged weights of the last step (ema), raw weights of the last
    step, or averaged weights of the best evaluation during training."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep convert`. Returns the exit code."""
    options = console.options(Options, "convert", argv)
    from fewstep import plugins, runs
    from fewstep.guidance import unguided

    if options.out.suffix != ".safetensors":
        raise InputError(f"--out {options.out} must be the name of a .safetensors file")
    generator = runs.load(options.source, weights=options.weights)
    note = runs.describe(options.source, weights=options.weights)
    recipe, pins, step = note.get("recipe"), note.get("pins", {}), note.get("step")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        runs.save_generator(options.out, generator, recipe, pins, step=step)
    except OSError as error:
        problem = error.strerror or str(error)
        raise InputError(f"cannot write {options.out}: {problem}; give another --out") from error
    denoiser, spec = generator.denoiser, generator.spec
    backbone = unguided(denoiser.backbone)
    parts = {
        "backbone": backbone.config,
        "process": denoiser.process,
        "parametrization": denoiser.parametrization,
        "sampler": generator.step,
    }
    names = [f"{noun} {plugins.name_of(noun, type(part))}" for noun, part in parts.items()]
    size = "x".join(map(str, spec.shape))
    classes = f", {spec.classes} classes" if spec.classes else ""
    count = sum(parameter.numel() for parameter in backbone.parameters())
    console.out.print(
        f"{options.out}: {quantity(count, 'parameter')}, {', '.join(names)}, {size}{classes}"
    )
    return 0
