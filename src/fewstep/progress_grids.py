"""The grid of pictures that a training saves at each checkpoint: samples, or reconstructions."""

from contextlib import suppress

import torch
from torch import Tensor

from fewstep.autoencoders import Autoencoder
from fewstep.drawing import generate
from fewstep.finite import NonFiniteImages
from fewstep.generator import Generator
from fewstep.images import from_uint8, to_uint8

PROMPTS = 16
"""Largest number of example prompts, each of which has a column."""


def progress_grid(
    result: Generator | Autoencoder, steps: int, examples: Tensor | None
) -> Tensor | None:
    """Two rows of pictures, uint8 (n, c, h, w); None for points.

    Of a generator they are samples at `steps` steps, always from the same noise. Of an autoencoder
    they are the `examples`, uint8 too, above their reconstructions. There are none with NaN: the
    training goes on, and its loss decides when it stops.
    """
    if isinstance(result, Autoencoder):
        assert examples is not None
        device = next(result.parameters()).device
        with torch.inference_mode():
            again = result(from_uint8(examples).to(device)).nan_to_num()
        return torch.cat([examples, to_uint8(again).cpu()])
    if len(result.spec.shape) != 3:
        return None
    prompts = result.spec.examples(PROMPTS)
    count = 2 * (len(prompts) or result.spec.classes or 8)
    with suppress(NonFiniteImages):
        steps = result.nearest(steps, quietly=True)
        samples = generate(result, count, steps=steps, prompts=prompts)
        return torch.cat([images for _, images in samples])
    return None
