"""`fewstep sample RUN -o grid.png`, `--gif FILE`, or `--each DIR` and `--npz FILE` for tools."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fewstep.cli import console
from fewstep.cli.guidance import GuidanceOptions
from fewstep.cli.prompts import print_unknown_words, printable_text, read_options
from fewstep.errors import InputError
from fewstep.formatting import quantity
from fewstep.paths import check_picture, check_writable, check_writable_folder
from fewstep.ranges import Count, Integer, Probability, SampleSeed, SamplingSteps

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.drawing import Turns
    from fewstep.generator import Generator
    from fewstep.value_range import ValueRange


COUNT = 40
"""Number of images without prompts."""
MAX_COLUMNS = 40
"""Largest number of prompts that have a column of the grid each."""
MAX_ANIMATED = 100
"""Largest number of images in an animation."""
MAX_FRAMES = 60
"""Frames of an animation; of more steps, some are left out."""


@dataclass(frozen=True)
class Rows:
    """What is generated."""

    count: int
    steps: int
    seed: int
    labels: Sequence[int]
    """Classes in turn; empty for the default."""
    prompts: Sequence[str]
    """Prompts in turn; empty for the default."""

    @property
    def turns(self) -> "Turns":
        return {"labels": self.labels or None, "prompts": self.prompts or None}


@dataclass(frozen=True)
class Options(GuidanceOptions):
    """Sample images, and save them as a grid in a picture, as an animation of how they emerge from
    noise, as single PNG files, or as a NumPy archive."""

    run: Annotated[str, tyro.conf.Positional, console.run_option()]
    out: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FILE")] = None
    """The picture to write, with all images in a grid, as .png, .jpg, .webp, .bmp or .tif."""
    gif: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The animation to write as .gif: the noise, the states after each step, and the images, each
    divided by alpha + sigma. It has at most 100 images and 60 frames."""
    each: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """A new folder for single images, 000000.png and so on, for tools that compute FID."""
    npz: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The NumPy archive to write, with images (n, h, w, 3) in uint8 and their labels, as
    guided-diffusion's evaluation reads it, and `prompts`, if the run reads any."""
    steps: SamplingSteps | None = None
    """Number of sampling steps; by default the smallest that the run supports. If it supports any,
    1 for a student and 16 for a teacher."""
    sampler: Annotated[str | None, console.sampler_option()] = None
    grid: Annotated[str | None, console.grid_option()] = None
    times: str | None = None
    """Decreasing times at which to call the network, separated by commas, instead of --steps
    and --grid."""
    count: Annotated[Count | None, tyro.conf.arg(aliases=["-n"])] = None
    """Number of images; by default one for each prompt of --prompt or --prompts, or 40."""
    seed: SampleSeed = 0
    """Seed of the noise; with the same seed, different runs start from the same noise."""
    label: str | None = None
    """Numbers of the classes to sample in turn, separated by commas; by default all classes."""
    prompt: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="TEXT")
    ] = ()
    """What to draw, for a run that reads prompts, such as "a smiling cat". Several --prompt take
    turns; by default captions of the training set do. An empty text is no prompt."""
    prompts: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """A text file with a prompt on each line, instead of --prompt."""
    negative: Annotated[str, tyro.conf.arg(metavar="TEXT")] = ""
    """With --guidance: a prompt to lead away from, in place of no prompt."""
    weights: Literal["ema", "raw", "best"] = "ema"
    """Averaged weights of the last step (ema), raw weights of the last step, or averaged weights of
    the best evaluation during training."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep sample`. Returns the exit code."""
    options = console.options(Options, "sample", argv)
    options.check()
    outputs = [path for path in (options.out, options.gif, options.each, options.npz) if path]
    if len(outputs) != 1:
        raise InputError("give one of -o FILE, --gif FILE, --each DIR and --npz FILE")
    if options.out:
        if options.out.suffix.lower() == ".gif":
            raise InputError(f"-o writes one picture: for an animation, give --gif {options.out}")
        check_picture(options.out, "-o")
    if options.gif:
        if options.gif.suffix.lower() != ".gif":
            raise InputError(f"--gif {options.gif} needs the suffix .gif: name another file")
        check_writable(options.gif, "--gif")
    if options.each:
        check_writable_folder(options.each, "--each")
    if options.npz:
        check_writable(options.npz, "--npz")
    generator, steps = _load(options)
    labels = console.numbers("--label", options.label, int, Integer) if options.label else ()
    prompts = read_options(generator, options.prompt, options.prompts)
    print_unknown_words(generator, [*prompts, options.negative])
    count = options.count or len(prompts) or COUNT
    _save(options, generator, Rows(count, steps, options.seed, labels, prompts))
    images, each = quantity(count, "image"), quantity(steps, "step")
    console.out.print(f"{outputs[0]}: {images}, {each}")
    return 0


def _load(options: Options) -> tuple["Generator", int]:
    """The generator on its device, with the requested sampler, and its number of steps."""
    from fewstep import runs
    from fewstep.distributed import device
    from fewstep.sampler_choices import with_sampler_choices
    from fewstep.times import FixedGrid

    if options.times and options.grid:
        raise InputError("--times replaces --grid: give one of the two")
    times = console.numbers("--times", options.times, float, Probability) if options.times else ()
    generator = runs.load(options.run, weights=options.weights)
    recipe = runs.describe(options.run, weights=options.weights).get("recipe")
    negative = printable_text(options.negative)
    generator = options.apply(generator, recipe, negative=negative)
    generator = with_sampler_choices(generator, recipe, sampler=options.sampler, grid=options.grid)
    steps = options.steps
    if steps is None:
        steps = min(runs.default_steps(generator, recipe))
    if times:
        generator = generator.with_sampler(grid=FixedGrid((times,)))
        steps = len(times)
    return generator.to(device()), generator.nearest(steps)


def _save(options: Options, generator: "Generator", rows: Rows) -> None:
    """Sample and write what the options request; says if values are cut off."""
    import torch

    from fewstep.drawing import generate_values
    from fewstep.image_files import check_channels, check_image_folder
    from fewstep.images import save_grid, to_uint8
    from fewstep.value_range import MAX_SHARE, ValueRange

    if rows.labels:
        generator.check_labels(torch.tensor(rows.labels))
    check_channels(generator.image_shape)
    if options.each:
        check_image_folder(options.each)
    values = ValueRange()

    def batches() -> "Iterator[tuple[range, Tensor]]":
        nonlocal values
        for numbers, images in generate_values(
            generator, rows.count, steps=rows.steps, seed=rows.seed, **rows.turns
        ):
            values += ValueRange.of(images)
            yield numbers, to_uint8(images).cpu()

    if options.gif:
        values = _save_animation(options.gif, generator, rows)
    elif options.out:
        images = torch.cat([batch for _, batch in batches()])
        note = {"prompts": "\n".join(rows.prompts)} if rows.prompts else {}
        save_grid(images, options.out, columns=_columns(generator, rows), note=note)
    else:
        _save_files(options, generator, rows, batches())
    if values.share > MAX_SHARE:
        print(
            f"fewstep: {values.text('the images')}, which the picture cuts off at ±1",
            file=sys.stderr,
        )


def _save_animation(path: Path, generator: "Generator", rows: Rows) -> "ValueRange":
    """Write the states of the images as an animation. Returns the range of the images' values."""
    from functools import partial

    from fewstep.drawing import seeds, start_noise
    from fewstep.finite import check_finite
    from fewstep.image_files import save_animation
    from fewstep.images import to_uint8
    from fewstep.trajectory import state_images
    from fewstep.value_range import ValueRange

    if rows.count > MAX_ANIMATED:
        raise InputError(
            f"an animation has at most {MAX_ANIMATED} images, not {rows.count:,}: lower -n, or "
            "write them by --each DIR"
        )
    start: Any = {"seed": rows.seed, "batch": rows.count, **rows.turns}
    numbers, noise, cond = next(start_noise(generator, rows.count, **start))
    settings: Any = {"steps": rows.steps, "cond": cond, "seed": seeds(rows.seed, numbers)}
    repeat = partial(generator.path, noise, **settings)
    values = ValueRange()

    def frames() -> "Iterator[Tensor]":
        nonlocal values
        for images in state_images(generator, noise, **settings, most=MAX_FRAMES):
            values = ValueRange.of(check_finite(generator, images, repeat))
            yield to_uint8(images).cpu()

    work = save_animation(frames(), path, columns=_columns(generator, rows))
    with console.bar(path.name, min(rows.steps + 1, MAX_FRAMES)) as update:
        for done in work:
            update(done)
    return values


def _columns(generator: "Generator", rows: Rows) -> int | None:
    """Number of columns of the grid: one for each prompt or class; None for a square."""
    if 1 < len(rows.prompts) <= min(rows.count, MAX_COLUMNS):
        return len(rows.prompts)
    if rows.prompts or generator.spec.text or rows.count < 10:
        return None
    return len(rows.labels) or generator.spec.classes or None


def _save_files(
    options: Options,
    generator: "Generator",
    rows: Rows,
    batches: "Iterator[tuple[range, Tensor]]",
) -> None:
    """Write single files or an archive, with a progress bar."""
    from fewstep.drawing import conditions, prompts_in_turn
    from fewstep.image_files import save_archive, save_each

    turns = prompts_in_turn(generator.spec, rows.prompts or None)
    prompts = [turns[row % len(turns)] for row in range(rows.count)] if turns else None
    if options.each:
        work, name = save_each(batches, options.each, prompts=prompts), options.each.name
    else:
        assert options.npz
        cond = conditions(generator.spec, range(rows.count), **rows.turns)
        numbers = None if cond is None or cond.label is None else cond.label.numpy()
        name = options.npz.name
        work = save_archive(batches, options.npz, count=rows.count, labels=numbers, prompts=prompts)
    with console.bar(name, rows.count) as update:
        for done in work:
            update(done)
