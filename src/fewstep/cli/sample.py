"""`fewstep sample RUN -o grid.png`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.cli import console
from fewstep.formatting import quantity


@dataclass(frozen=True)
class Options:
    """Sample images and save them as a grid in a PNG file."""

    run: Annotated[str, tyro.conf.Positional, console.run_option()]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The PNG file to write."""
    steps: int | None = None
    """Number of sampling steps; by default the smallest that the run supports. If it supports any,
    1 for a student and 16 for a teacher."""
    sampler: Annotated[
        str | None, console.names_option("sampler", "Sampler, by default that of the run")
    ] = None
    times: str | None = None
    """Decreasing times at which to call the network, separated by commas, instead of --steps."""
    count: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 40
    """Number of images."""
    seed: int = 0
    """Seed of the noise; with the same seed, different runs start from the same noise."""
    label: str | None = None
    """Numbers of the classes to sample in turn, separated by commas; by default all classes."""
    guidance: float = 1.0
    """Weight of classifier-free guidance; 1 means no guidance."""
    weights: Literal["ema", "raw", "best"] = "ema"
    """Averaged weights of the last step (ema), raw weights of the last step, or averaged weights of
    the best evaluation during training."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep sample`. Returns the exit code."""
    options = console.options(Options, "sample", argv)
    import torch

    from fewstep import runs
    from fewstep.abilities import with_guidance
    from fewstep.distributed import device
    from fewstep.drawing import generate_values
    from fewstep.generator import convert_step
    from fewstep.images import save_grid, to_uint8
    from fewstep.times import FixedGrid
    from fewstep.value_range import MAX_SHARE, ValueRange

    labels = console.numbers("--label", options.label, int) if options.label else ()
    times = console.numbers("--times", options.times, float) if options.times else ()
    generator = runs.load(options.run, weights=options.weights)
    recipe = runs.describe(options.run, weights=options.weights).get("recipe")
    generator = with_guidance(generator, options.guidance, recipe)
    if labels:
        generator.check_labels(torch.tensor(labels))
    if options.sampler:
        generator = generator.with_sampler(step=convert_step(generator.step, options.sampler))
    steps = options.steps
    if steps is None:
        steps = min(runs.default_steps(generator, recipe))
    if times:
        generator = generator.with_sampler(grid=FixedGrid((times,)))
        steps = len(times)
    generator, values = generator.to(device()), ValueRange()
    images: list[torch.Tensor] = []
    for _, batch in generate_values(
        generator, options.count, steps=steps, seed=options.seed, labels=labels or None
    ):
        values += ValueRange.of(batch)
        images.append(to_uint8(batch).cpu())
    if values.share > MAX_SHARE:
        print(
            f"fewstep: {values.text('the images')}, which the picture cuts off at ±1",
            file=sys.stderr,
        )
    columns = len(labels) or generator.spec.classes or None
    save_grid(torch.cat(images), options.out, columns=columns if options.count >= 10 else None)
    console.out.print(
        f"{options.out}: {quantity(options.count, 'image')}, {quantity(steps, 'step')}"
    )
    return 0
