"""The two ways in which published FID numbers bring images to the network's size."""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

Resize = Literal["tf1-bilinear", "clean-bicubic"]


def resized(
    images: Float[Tensor, "n c h w"], size: int, how: Resize
) -> Float[Tensor, "n c {size} {size}"]:
    """Y = R X C^T for each channel X, with fixed matrices R and C: differentiable.

    Nothing is rounded or clipped, though `clean-bicubic` overshoots at edges, out of 0...255 too;
    clean-fid itself clips afterwards. What is not square is stretched to a square; what has the
    size already is returned as it is.

    `tf1-bilinear` is the resize inside the original FID network (Heusel et al. 2017,
    arXiv:1706.08500); `clean-bicubic` that of clean-fid (Parmar et al. 2022, arXiv:2104.11222).
    """
    height, width = images.shape[-2:]
    if height == width == size:
        return images
    rows = torch.as_tensor(_weights(height, size, how), dtype=images.dtype, device=images.device)
    columns = torch.as_tensor(_weights(width, size, how), dtype=images.dtype, device=images.device)
    return rows @ (images @ columns.T)


# numpy, because a tensor first made in inference mode could never again take part in a gradient
@lru_cache(maxsize=64)
def _weights(given: int, size: int, how: Resize) -> Float64[ndarray, "size given"]:
    """One row for each output pixel: how much of each input pixel it takes; rows sum to 1."""
    return _tf1_bilinear(given, size) if how == "tf1-bilinear" else _clean_bicubic(given, size)


def _tf1_bilinear(given: int, size: int) -> Float64[ndarray, "size given"]:
    """Output i is read at i * given / size, linearly between the pixels below and above.

    That is `resize_bilinear` of TensorFlow 1 with align_corners=False: pixel centres are taken to
    be at whole numbers, which shifts the image, and nothing is smoothed before it shrinks.
    """
    index = np.arange(size)
    position = index * (given / size)
    below = np.minimum(position.astype(np.int64), given - 1)
    above = np.minimum(below + 1, given - 1)
    weights = np.zeros((size, given))
    np.add.at(weights, (index, below), 1 - (position - below))
    np.add.at(weights, (index, above), position - below)
    return weights


def _clean_bicubic(given: int, size: int) -> Float64[ndarray, "size given"]:
    """w_ij = k((j + 1/2 - (i + 1/2) s) / max(s, 1)), with s = given / size; rows made to sum to 1.

    That is Pillow's bicubic resize: when the image shrinks, the kernel widens by as much, and at
    an edge the pixels that are there share the whole weight.
    """
    scale = given / size
    centre = (np.arange(size) + 0.5) * scale
    distance = (np.arange(given) + 0.5 - centre[:, None]) / max(scale, 1.0)
    weights = _cubic(np.abs(distance))
    return weights / weights.sum(1, keepdims=True)


def _cubic(x: Float64[ndarray, "size given"]) -> Float64[ndarray, "size given"]:
    """Keys' piecewise cubic with a = -1/2, for x >= 0 (Keys 1981, IEEE TASSP 29(6))."""
    a = -0.5
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
