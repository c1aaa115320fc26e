"""Checks of a student against its method: where it starts, its times and what it predicts."""

import math
import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import SPAN_TOLERANCE, Denoiser
from fewstep.errors import InputError
from fewstep.methods.base import Method
from fewstep.methods.objective import Objective
from fewstep.parametrization import Clean, Mixed
from fewstep.plugins import name_of
from fewstep.times import Grid

MAX_START_SNR = 0.005
"""Largest (alpha/sigma)² at the first time without a warning; Stable Diffusion 1 has 0.0047, and
lacks very dark and very bright images for it (Lin et al. 2023, arXiv:2305.08891)."""
MAX_ERROR_FACTOR = 10.0
"""Largest `Denoiser.error_factor` at which `check_start` lets sampling start."""
MAX_LEVEL_TURN = 40.0
"""Largest `level_turn` without a warning for methods that differentiate in time. At a pace of 0.1,
where it is 40 to 90, MeanFlow on eight Gaussians is 3 times as far from the data in 2 steps as at
0.03, where it is 10 to 30."""


def training_warnings(method: Objective[Any]) -> list[str]:
    """What to tell the user before training: one line for each setting that is likely to be wrong.

    These are the method's own `warnings`, and measurements of its networks. The list is empty if
    nothing was found.
    """
    embedding = _embedding_warning(method) if isinstance(method, Method) else None
    return [*method.warnings(), *([embedding] if embedding else [])]


def _embedding_warning(method: Method[Any]) -> str | None:
    if not method.differentiates_in_time:
        return None
    turn = level_turn(method.student)
    if turn <= MAX_LEVEL_TURN:
        return None
    pace = 0.004 if method.student.parametrization.logarithmic else 0.03
    return (
        f"{type(method).__name__} learns from the network's derivative in time, but this network "
        f"embeds the noise level too fast: its output turns by {turn:.0f} radians from the lowest "
        f"to the highest level, and more than {MAX_LEVEL_TURN:.0f} make a poor student: train it, "
        f"or the teacher that it copies, with student.backbone.pace={pace}"
    )


def level_turn(denoiser: Denoiser, *, levels: int = 4) -> float:
    """How far the network turns with the noise level over its span, in radians.

    It is the derivative of the output with respect to the level, divided by the output's standard
    deviation over `levels` levels and multiplied by the range of levels. One sine of n periods has
    2πn, a straight line √12. A network that ignores the level has 0.

    The weight matrices are redrawn in a copy, because training can hide a fast embedding from the
    output without making it slow. Everything else, such as the frequencies, stays as it is.
    """
    network = deepcopy(denoiser.backbone).eval().requires_grad_(False)
    first = next(network.parameters(), torch.empty(0))
    generator = torch.Generator(first.device).manual_seed(0)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    x = torch.randn(network.shape, generator=generator, device=first.device, dtype=first.dtype)
    low, high = denoiser.network_inputs(torch.tensor(denoiser.span), x.expand(2, *x.shape))[1]
    step = 1e-4  # as a share of the range of levels
    starts = torch.arange(levels, device=x.device) / levels
    level = low + (high - low) * torch.stack([starts, starts + step])
    with torch.no_grad():
        output = network(x.expand(2 * levels, *x.shape), level.flatten()).double()
    here, ahead = output.unflatten(0, (2, levels))
    deviation = here.var(0, correction=0).mean().sqrt()
    slope = ((ahead - here) / step).square().mean().sqrt()
    return (slope / deviation).item() if deviation > 0 else 0.0


def check_start(method: Method[Any]) -> None:
    """Raise InputError if the student's errors are too large in the image where sampling starts.

    An eps network of DDPM multiplies its error there by 157. A method that `trains_at_all_times` is
    checked at the end of the span, wherever sampling starts. Warns if samples start from noise
    alone where the student trains on noise with much of an image.
    """
    if not method.uses_first_image:
        return
    generator = method.generator()
    denoiser, counts = generator.denoiser, generator.grid.counts or (1,)
    starts = [float(generator.grid(count, denoiser)[0]) for count in counts]
    start, earliest = max(starts), min(starts)
    noisiest, event = start, "sampling starts"
    if method.trains_at_all_times and start < denoiser.span[1] - SPAN_TOLERANCE:
        noisiest, event = denoiser.span[1], "the training times end"
    factor = denoiser.error_factor(noisiest)
    if factor <= MAX_ERROR_FACTOR:
        snr = denoiser.process.ratio(torch.tensor(earliest, dtype=torch.float64)).item() ** -2
        if snr > MAX_START_SNR and not method.starts_from_noise:
            warnings.warn(
                f"{type(method).__name__} or its teacher learns from noise with much of an image "
                f"at t = {earliest:.4g} (signal-to-noise ratio {snr:.2g}), but samples start from "
                "noise alone there, so that images will lack contrast: start later, or set "
                "student.parametrization to velocity in place of student.start",
                stacklevel=2,
            )
        return
    own = denoiser.parametrization
    name = name_of("parametrization", type(own.outputs if isinstance(own, Mixed) else own))
    size = f"{factor:.0f} times" if math.isfinite(factor) else "infinitely"
    raise InputError(
        f'the student predicts "{name}", whose error is {size} as large in the image at t = '
        f"{noisiest:.4g}, where {event}; 10 times is allowed. Choose one: "
        'student.parametrization="velocity" keeps the weights and adapts them for fit.adapt steps; '
        "student.start={snr=0.25} starts with less noise; student.init=RUN starts from a network "
        "that predicts something else"
    )


def check_augmentation(method: Method[Any], probability: float) -> None:
    """Raise InputError for a `data.augment` of `probability` that would have no effect."""
    if probability and "images" not in method.reads and not method.augments_samples:
        raise InputError(
            f"data.augment is {probability}, but {type(method).__name__} trains on no real images, "
            "and would augment no others: set data.augment=0"
        )


def check_coupling(method: Method[Any], *, augment: float, flip: bool) -> None:
    """Raise InputError for data that the method's coupling of noise and images cannot pair."""
    coupling = method.coupling
    if coupling is None:
        return
    start = f"method.coupling is {name_of('coupling', type(coupling))}, which pairs noise with "
    if method.spec.text is not None:
        raise InputError(
            f"{start}images of the same class, and each caption would be one: set "
            'data.captions=false, or method.coupling="independent"'
        )
    if augment:
        raise InputError(
            f"{start}images of the same class, and each augmentation would be one: set "
            'data.augment=0, or method.coupling="independent"'
        )
    if flip and not coupling.takes_mirrored:
        raise InputError(
            f"{start}the images of the set, and data.flip mirrors them: set data.flip=false"
        )


def check_prompt_file(method: Method[Any], path: str | None) -> None:
    """Raise InputError for a `data.prompts` at `path` that would have no effect."""
    if path is not None and not method.draws_conditions:
        source = "pairs" if "pairs" in method.reads else "the captions of the data"
        raise InputError(
            f"data.prompts is {path}, but {type(method).__name__} trains on the prompts of "
            f"{source}: remove that key"
        )


def grid_times(grid: Grid, steps: int, student: Denoiser) -> Tensor:
    """The times of `steps` steps on a method's grid.

    Raises: InputError if the grid has no times for that many steps.
    """
    if grid.counts and steps not in grid.counts:
        counts = " or ".join(map(str, grid.counts))
        raise InputError(
            f"method.grid has no times for the {steps} steps of this method, only for {counts}: "
            'set it to "uniform" or "karras", whose first time is student.start'
        )
    return grid(steps, student)


def check_regular(student: Denoiser) -> None:
    """Raise InputError if the student's velocity is undefined at the image end of its span."""
    if isinstance(student.parametrization, Clean):
        raise InputError(
            "this method needs a student whose velocity is defined at all noise levels, which "
            'that of student.parametrization "x0" is not: set it to "velocity", "v" or "edm"'
        )


def check_spans(student: Denoiser, teacher: Denoiser) -> None:
    """Raise InputError if the student's span of times is not within the teacher's.

    Both must have the same process.
    """
    (low, high), (teacher_low, teacher_high) = student.span, teacher.span
    if low < teacher_low - SPAN_TOLERANCE or high > teacher_high + SPAN_TOLERANCE:
        raise InputError(
            f"the student's times are [{low:.6g}, {high:.6g}], but its teacher was trained only at "
            f"[{teacher_low:.6g}, {teacher_high:.6g}]: set the student's parametrization to the "
            "teacher's"
        )
