"""`fewstep sample RUN -o grid.png`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.cli import console


@dataclass(frozen=True)
class Options:
    """Sample a grid of images into a PNG file."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder, a weights file, diffusers:FOLDER or diffusers:HUB_NAME."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The PNG file to write."""
    steps: int | None = None
    """Number of steps; by default the fewest that the run was trained for, else 8."""
    sampler: str | None = None
    """transfer, ancestral, renoise, heun, multistep or corrector, or ring for a circuit; by default
    the run's own."""
    times: str | None = None
    """Decreasing times at which the network is evaluated, with commas, in place of --steps."""
    count: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 40
    """Number of images."""
    seed: int = 0
    """Seed of the noise: with equal seeds, different runs start from the same noise."""
    label: str | None = None
    """Classes to sample in turn, with commas; by default all."""
    guidance: float = 1.0
    """Weight of classifier-free guidance; 1 is no guidance."""
    weights: Literal["ema", "raw", "best"] = "ema"
    """Averaged weights, raw ones of the last step, or averaged ones of the best evaluation."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep sample`. Returns the exit code."""
    options = console.options(Options, "sample", argv)
    import torch

    from fewstep import runs
    from fewstep.distributed import device
    from fewstep.drawing import generate
    from fewstep.images import save_grid
    from fewstep.sampling import convert_step
    from fewstep.times import FixedGrid

    labels = console.numbers("--label", options.label, int) if options.label else ()
    times = console.numbers("--times", options.times, float) if options.times else ()
    generator = runs.load(options.run, weights=options.weights)
    if options.guidance != 1:
        generator = generator.with_guidance(options.guidance)
    if labels:
        generator.check_labels(torch.tensor(labels))
    if options.sampler:
        generator = generator.with_sampler(step=convert_step(generator.step, options.sampler))
    steps = options.steps if options.steps is not None else min(generator.grid.counts or (8,))
    if times:
        generator = generator.with_sampler(grid=FixedGrid((times,)))
        steps = len(times)
    images = [
        rows
        for _, rows in generate(
            generator.to(device()),
            options.count,
            steps=steps,
            seed=options.seed,
            labels=labels or None,
        )
    ]
    columns = len(labels) or generator.spec.classes or None
    save_grid(torch.cat(images), options.out, columns=columns if options.count >= 10 else None)
    console.out.print(f"{options.out}: {options.count} images, {steps} steps")
    return 0
