"""Samples that start from a picture: noise is added up to a level, then removed in few steps.

Meng et al. 2022, SDEdit, arXiv:2108.01073.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.finite import check_finite
from fewstep.generator import Generator
from fewstep.sampling import path, sample


def paint(
    generator: Generator,
    image: Tensor,
    noise: Tensor,
    *,
    freedom: float,
    steps: int = 1,
    cond: Condition | None = None,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """Images (b, *shape), about [-1, 1], that resemble `image` (b, *shape) in [-1, 1].

    `freedom`, above 0 and at most 1, is the noise level that the picture is brought to, as
    sigma/(alpha + sigma): at a small one only details change, and at 1 hardly anything of the
    picture is left. `noise` (b, *shape) is standard normal, and `seed` is as in `Generator`.

    Raises: InputError for a freedom out of range, or one below the network's lowest noise level;
    for pictures of another shape, a label out of range, or results with NaN or infinite values.
    """
    shapes = tuple(image.shape), tuple(noise.shape), (len(noise), *generator.spec.shape)
    if len(set(shapes)) > 1:
        raise InputError(
            f"image and noise have the shapes {shapes[0]} and {shapes[1]}; this "
            f"generator takes (n, {', '.join(map(str, generator.spec.shape))}) for both"
        )
    generator.check_condition(cond)
    times = paint_times(generator, freedom, steps)
    settings: Any = {"step": generator.step, "cond": cond, "seed": seed, "image": image}
    images = sample(generator.denoiser, noise, times, **settings)
    return check_finite(
        generator, images, partial(path, generator.denoiser, noise, times, **settings)
    )


def paint_times(generator: Generator, freedom: float, steps: int) -> Tensor:
    """Decreasing times (N,) of a sample that starts at `freedom`: the grid's, at lower levels."""
    if not 0 < freedom <= 1:
        raise InputError(f"freedom is {freedom:g}; it must be above 0 and at most 1")
    denoiser, process = generator.denoiser, generator.denoiser.process
    ratio = process.ratio(generator.grid(generator.nearest(steps), denoiser))
    # sigma/(alpha + sigma), also where alpha is 0 and the ratio infinite
    level = 1 / (1 + 1 / ratio)
    level = freedom * level / level[0]
    times = process.time(level / (1 - level)).clamp(*denoiser.span)
    if (times.diff() >= 0).any():
        raise InputError(
            f"freedom {freedom:g} is below the lowest noise levels of this network in {steps} "
            "steps: give more freedom, or fewer steps"
        )
    return times
