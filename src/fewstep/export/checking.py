"""Compare an exported program with PyTorch, before an export says that it succeeded."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import InputError
from fewstep.export.program import Unrolled
from fewstep.formatting import quantity

TOLERANCE = 1e-3
"""Largest difference of images in [0, 1], a quarter of one of 255 brightness levels. For points it
is relative to the largest coordinate."""
BATCHES = (1, 7)
"""Numbers of rows with which programs are compared."""

Run = Callable[[tuple[Tensor, ...]], Tensor]


@torch.inference_mode()
def compare(name: str, run: Run, module: Unrolled) -> dict[str, Any]:
    """Compare `run(inputs)` with the module's output, for 1 and 7 rows.

    Returns what was checked, as JSON values. Raises InputError if the outputs differ by more than
    the tolerance.
    """
    largest = 0.0
    for batch in BATCHES:
        inputs = module.example_inputs(batch)
        expected, output = module(*inputs), run(inputs)
        if not expected.isfinite().all():
            raise InputError(
                f"images of this generator in {quantity(module.steps, 'step')} are infinite or not "
                "numbers: choose another number of --steps, or another --sampler"
            )
        if output.shape != expected.shape:
            shapes = f"{tuple(output.shape)} instead of {tuple(expected.shape)}"
            raise InputError(f"{name} returns an array of the shape {shapes}")
        scale = 1.0 if module.output_name == "image" else max(1.0, expected.abs().max().item())
        difference = (output - expected).abs().max().item() / scale
        largest = max(largest, difference if math.isfinite(difference) else math.inf)
    if not largest <= TOLERANCE:
        raise InputError(
            f"{name} differs from PyTorch by {largest:.3g}, more than {TOLERANCE:g}: the network "
            "or the sampler draws random numbers of its own, or amplifies rounding errors"
        )
    return {"largest_difference": largest, "tolerance": TOLERANCE, "rows": list(BATCHES)}
