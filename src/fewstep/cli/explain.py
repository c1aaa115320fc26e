"""`fewstep explain RUN|RECIPE --out DIR`: pictures of the noise, the times and the sampler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fewstep.cli import console
from fewstep.errors import InputError
from fewstep.paths import check_writable_folder
from fewstep.ranges import SampleSeed, SamplingSteps

if TYPE_CHECKING:
    from fewstep.explain.model import Model


@dataclass(frozen=True)
class Options:
    """Draw pictures that explain a run or a recipe: forward.png (images with more and more noise),
    schedule.svg (alpha, sigma and log-SNR over time, and the density of training times),
    trajectory.png (the states of a sample, and the image that the network predicts from each) and
    trajectories.svg (in the plane; of points that are known in closed form, unless the run
    generates points in the plane itself)."""

    run: Annotated[
        str,
        tyro.conf.Positional,
        console.run_option(
            "A run folder, a weights file, a recipe (a preset's name or a TOML file)",
            metavar="RUN|RECIPE",
        ),
    ]
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="DIR")]
    """The folder for the pictures. Pictures of these names in it are replaced."""
    data: Annotated[
        str | None,
        console.data_option("Images to add noise to, by default those of the run's training set"),
    ] = None
    steps: SamplingSteps | None = None
    """Number of sampling steps; by default the smallest that the run supports. If it supports any,
    1 for a student and 16 for a teacher."""
    sampler: Annotated[str | None, console.sampler_option()] = None
    grid: Annotated[str | None, console.grid_option()] = None
    seed: SampleSeed = 0
    """Seed of the noise, and of the choice of images."""
    weights: Literal["ema", "raw", "best"] = "ema"
    """Averaged weights of the last step (ema), raw weights of the last step, or averaged weights of
    the best evaluation during training."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep explain`. Returns the exit code."""
    options = console.options(Options, "explain", argv)
    check_writable_folder(options.out, "--out")
    from fewstep.distributed import device
    from fewstep.explain.model import load_model
    from fewstep.sampler_choices import with_sampler_choices
    from fewstep.trajectory import times_and_scales

    model = load_model(options.run, weights=options.weights, data=options.data)
    generator = model.generator.to(device())
    if options.sampler or options.grid:
        recipe, sampler, grid = model.recipe_table, options.sampler, options.grid
        generator = with_sampler_choices(generator, recipe, sampler=sampler, grid=grid)
        model = model.with_generator(generator)
    steps = model.generator.nearest(options.steps or model.default_steps)
    times_and_scales(model.generator, steps)  # raises for more steps than the grid has
    pictures: dict[str, Callable[[Path], str]] = {
        "forward.png": lambda path: _forward(path, model, options),
        "schedule.svg": lambda path: _schedule(path, model, steps),
        "trajectory.png": lambda path: _pixels(path, model, steps, options.seed),
        "trajectories.svg": lambda path: _plane(path, model, steps, options.seed),
    }
    for name, draw in pictures.items():
        try:
            text = draw(options.out / name)
            console.out.print(f"{options.out / name}: {text}")
        except InputError as error:
            if name == "forward.png" and options.data:  # the user named these images
                raise
            console.out.print(f"{name} is left out: {error}")
    return 0


def _forward(path: Path, model: "Model", options: Options) -> str:
    from fewstep.explain.noising import add_noise
    from fewstep.explain.sheets import save_sheet

    noisy = add_noise(model, seed=options.seed)
    save_sheet(noisy.sheet(), path)
    return f"images at {len(noisy.times)} times from {noisy.times[0]:.3g} to {noisy.times[-1]:.3g}"


def _schedule(path: Path, model: "Model", steps: int) -> str:
    from fewstep.explain.schedule import save_schedule, training_densities

    _write(path, save_schedule(model, steps))
    text = "alpha, sigma and log-SNR over t"
    names = [curve.name for curve in training_densities(model)]
    if names:
        return f"{text}, and the density of training times ({', '.join(names)})"
    if model.recipe is None:
        return f"{text}, without training times, which no recipe in the file tells"
    return f"{text}; the method {model.recipe.method_name} has no density of training times"


def _pixels(path: Path, model: "Model", steps: int, seed: int) -> str:
    from fewstep.explain.sheets import save_sheet
    from fewstep.explain.trajectories import pixel_trajectory
    from fewstep.formatting import quantity

    if not model.is_trained:
        raise InputError("a recipe has no trained network: name its run")
    save_sheet(pixel_trajectory(model, steps, seed=seed), path)
    return f"states and predicted images of {quantity(steps, 'step')}"


def _plane(path: Path, model: "Model", steps: int, seed: int) -> str:
    from fewstep.explain.trajectories import plane_trajectories, save_plane

    trajectories = plane_trajectories(model, steps, seed=seed)
    _write(path, save_plane(trajectories, model.generator))
    return trajectories.title


def _write(path: Path, text: str) -> None:
    from fewstep.files import atomic_write

    with atomic_write(path) as file:
        file.write(text.encode())
