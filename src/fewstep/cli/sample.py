"""`fewstep sample RUN -o grid.png`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.cli import console


@dataclass(frozen=True)
class Options:
    """Draw a grid of images, as a PNG file."""

    run: tyro.conf.Positional[str]
    """A run folder, a weights file, diffusers:FOLDER or diffusers:HUB_NAME."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FILE")]
    """The PNG to write."""
    steps: int | None = None
    """Steps; by default the fewest that the run was made for, else 8."""
    sampler: str | None = None
    """transfer, ancestral, renoise, heun, multistep or corrector, or a circuit's ring; by default
    the run's own."""
    times: tuple[float, ...] = ()
    """The very times to ask the network at, falling, instead of --steps."""
    count: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 40
    """Images to draw."""
    seed: int = 0
    """Of the noise: equal seeds start different runs from the same noise."""
    label: tuple[int, ...] = ()
    """Classes to draw, in turn; by default all."""
    guidance: float = 1.0
    """Weight of classifier-free guidance; 1: none."""
    weights: Literal["ema", "raw", "best"] = "ema"
    """The averaged weights, or those of the last step."""


def main(argv: Sequence[str]) -> int:
    """Draw; 0 when the file is written."""
    told = console.options(Options, "sample", argv)
    import torch

    from fewstep import runs
    from fewstep.distributed import device
    from fewstep.drawing import generate
    from fewstep.images import save_grid
    from fewstep.sampling import renamed_step
    from fewstep.times import FixedGrid

    generator = runs.load(told.run, weights=told.weights)
    if told.guidance != 1:
        generator = generator.with_guidance(told.guidance)
    if told.label:
        generator.check_labels(torch.tensor(told.label))
    if told.sampler:
        generator = generator.with_sampler(step=renamed_step(generator.step, told.sampler))
    steps = told.steps if told.steps is not None else min(generator.grid.counts or (8,))
    if told.times:
        generator = generator.with_sampler(grid=FixedGrid((told.times,)))
        steps = len(told.times)
    images = [
        rows
        for _, rows in generate(
            generator.to(device()),
            told.count,
            steps=steps,
            seed=told.seed,
            labels=told.label or None,
        )
    ]
    columns = len(told.label) or generator.spec.classes or None
    save_grid(torch.cat(images), told.out, columns=columns if told.count >= 10 else None)
    console.out.print(f"{told.out}: {told.count} images, {steps} steps")
    return 0
