"""The two ways in which published FID scores resize images to the network's input size."""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy import ndarray
from torch import Tensor

Resize = Literal["tf1-bilinear", "clean-bicubic"]


def resize_images(
    images: Float[Tensor, "n c h w"], size: int, method: Resize
) -> Float[Tensor, "n c {size} {size}"]:
    """Resize to size x size: Y = R X C^T for each channel X, with fixed matrices R and C.

    It is differentiable. Values are not rounded or clipped, so `clean-bicubic` may leave [0, 255]
    at edges; clean-fid clips afterwards. Images that are not square are stretched; images that
    have the size already are returned unchanged.

    `tf1-bilinear` is the resize inside the original FID network (Heusel et al. 2017,
    arXiv:1706.08500); `clean-bicubic` that of clean-fid (Parmar et al. 2022, arXiv:2104.11222).
    """
    height, width = images.shape[-2:]
    if height == width == size:
        return images
    rows = torch.as_tensor(_weights(height, size, method), dtype=images.dtype, device=images.device)
    columns = torch.as_tensor(
        _weights(width, size, method), dtype=images.dtype, device=images.device
    )
    return rows @ (images @ columns.T)


# numpy: a tensor created in inference mode could not be used in autograd later
@lru_cache(maxsize=64)
def _weights(length: int, size: int, method: Resize) -> Float64[ndarray, "size length"]:
    """The weight of each input pixel in each output pixel, one row per output; rows sum to 1."""
    return _tf1_bilinear(length, size) if method == "tf1-bilinear" else _clean_bicubic(length, size)


def _tf1_bilinear(length: int, size: int) -> Float64[ndarray, "size length"]:
    """Output i interpolates linearly at position i * length / size.

    This is `resize_bilinear` of TensorFlow 1 with align_corners=False: it takes pixel centres to
    be at whole numbers, which shifts the image, and it does not antialias.
    """
    index = np.arange(size)
    position = index * (length / size)
    below = np.minimum(position.astype(np.int64), length - 1)
    above = np.minimum(below + 1, length - 1)
    weights = np.zeros((size, length))
    np.add.at(weights, (index, below), 1 - (position - below))
    np.add.at(weights, (index, above), position - below)
    return weights


def _clean_bicubic(length: int, size: int) -> Float64[ndarray, "size length"]:
    """w_ij = k((j + 1/2 - (i + 1/2) s) / max(s, 1)), s = length / size, with rows normalised to 1.

    This is Pillow's bicubic resize: when the image shrinks, the kernel widens by the same factor,
    and at an edge the weight is divided among the pixels inside.
    """
    scale = length / size
    centre = (np.arange(size) + 0.5) * scale
    distance = (np.arange(length) + 0.5 - centre[:, None]) / max(scale, 1.0)
    weights = _cubic(np.abs(distance))
    return weights / weights.sum(1, keepdims=True)


def _cubic(x: Float64[ndarray, "size length"]) -> Float64[ndarray, "size length"]:
    """Keys' piecewise cubic with a = -1/2, for x >= 0 (Keys 1981, IEEE TASSP 29(6))."""
    a = -0.5
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
