"""Perceptual distances between images: LPIPS, and the same distance with equal weights.

Images must be floats in [-1, 1]; integers and values far outside raise an error. Images in [0, 1]
raise none, because they are valid in [-1, 1]: convert them by 2 * images - 1.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from fewstep.errors import InputError
from fewstep.metrics.extractors.trunks import Trunk, load_trunk
from fewstep.metrics.extractors.weights import load_weights, weights_digest

Signed = Float[Tensor, "n c h w"]
"""Images in [-1, 1], where -1 is black and 1 is white; not in [0, 1] and not in [0, 255]."""

Rows = Float[Tensor, " n"]
Maps = Callable[[Tensor], list[Tensor]]

EPS = 1e-8
TOLERANCE = 1e-3  # values may leave [-1, 1] by rounding, also in half precision
LOSS_LIMIT = 16.0  # above any noisy image of data in [-1, 1], below images in [0, 255]


class ImageDistance(ABC):
    """A distance of two images. Call it to measure; use `loss` to train."""

    def __call__(self, a: Tensor, b: Tensor) -> Rows:
        """The distance (n,) of each pair of images (n, c, h, w).

        Raises: InputError for images that are not floats in [-1, 1], or differ in shape.
        """
        return self._distance(*check_range(a, b))

    def loss(self, a: Tensor, b: Tensor) -> Rows:
        """The same distance for training, where a student's images may leave [-1, 1].

        Raises InputError only for finite values beyond ±16. NaN and infinity are passed on, and
        training detects them in the loss.
        """
        return self._distance(*check_range(a, b, strict=False))

    @abstractmethod
    def _distance(self, a: Signed, b: Signed) -> Rows: ...


class Lpips(ImageDistance, nn.Module):
    """LPIPS version 0.1: how different two images look to people.

    d(a, b) = sum_l mean_hw w_l . (u_l(a) - u_l(b))^2,  u = x / sqrt(1e-8 + sum_c x^2),

    where x_l are the feature maps of `trunk` and w_l >= 0 the published `heads`, fitted to human
    judgements (Zhang et al. 2018, arXiv:1801.03924). It is 0 for equal images and seldom above 1;
    values of different trunks are not comparable. The 1e-8 is inside the root, as in torchmetrics.
    The original adds 1e-10 outside, and its gradient is NaN where all channels are 0.

    Grey images are repeated to three channels. If `size` is set, images are resized to size x size
    first (see `resize_bilinear`): the trunks were trained on photographs, and losses on 32 x 32
    images usually resize to 64, or to 224 (Song et al. 2023, arXiv:2303.01469).

    The trunk is copied, and its weights are frozen.

    Raises: InputError if the heads do not fit the trunk, or `size` is below 1.
    """

    shift: Tensor
    scale: Tensor
    hash: str
    """Sixteen hexadecimal digits of a SHA-256 over all weights."""

    def __init__(self, trunk: Trunk, heads: Sequence[Tensor], *, size: int | None = None) -> None:
        super().__init__()
        sizes, channels = tuple(head.numel() for head in heads), trunk.channels
        if sizes != channels:
            raise InputError(
                f"LPIPS heads have {sizes} weights, but the feature maps of the {trunk.name} trunk "
                f"have {channels} channels; give the heads of that trunk, in order"
            )
        self.size = _check_size(size)
        values = " ".join(repr(head.flatten().tolist()) for head in heads)
        self.hash = weights_digest(trunk, values)
        self.trunk = _freeze(copy.deepcopy(trunk))
        for name, value in [("shift", (-0.030, -0.088, -0.188)), ("scale", (0.458, 0.448, 0.450))]:
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)
        for layer, head in enumerate(heads):
            weights = head.detach().flatten().clone()
            self.register_buffer(f"head{layer}", weights, persistent=False)

    def _distance(self, a: Signed, b: Signed) -> Rows:
        heads: list[Tensor] = [getattr(self, f"head{i}") for i in range(len(self.trunk.channels))]
        return layered_distance(self._maps(a), self._maps(b), heads)

    def _maps(self, images: Signed) -> list[Tensor]:
        if images.shape[1] not in (1, 3):
            raise InputError(
                f"LPIPS takes images of 1 or 3 channels, not {images.shape[1]}; use three of them"
            )
        scaled = (images.to(self.scale.dtype) - self.shift) / self.scale  # 1 channel becomes 3
        return self.trunk.feature_maps(resize_bilinear(scaled, self.size))


def load_lpips(name: str, *, size: int | None = None) -> Lpips:
    """LPIPS with the published weights of the trunk called squeeze, alex or vgg.

    Raises: InputError if the weights are missing.
    """
    heads = load_weights(f"lpips-{name}")
    ordered = [heads[f"lin{i}.model.1.weight"] for i in range(len(heads))]
    return Lpips(load_trunk(name), ordered, size=size)


class FeatureDistance(ImageDistance):
    """LPIPS with the feature maps of any network, and with weight 1 / channels for each channel.

    d(a, b) = sum_l mean_hw mean_c (u_l(a) - u_l(b))^2,  u = x / sqrt(1e-8 + sum_c x^2).

    It needs no published weights. It is the unweighted baseline of Zhang et al. 2018,
    arXiv:1801.03924; its values cannot be compared with LPIPS. Each feature map contributes
    between 0 and 4 / channels.

    The function `maps` takes images in [-1, 1] and returns one tensor (n, c, h, w) per feature map.
    It must be differentiable, and its weights are not frozen here. If `size` is set, images are
    resized to size x size first (see `resize_bilinear`).

    Raises: InputError if `size` is below 1.
    """

    def __init__(self, maps: Maps, *, size: int | None = None) -> None:
        self.maps, self.size = maps, _check_size(size)

    def _distance(self, a: Signed, b: Signed) -> Rows:
        maps_a, maps_b = (self.maps(resize_bilinear(images, self.size)) for images in (a, b))
        weights = [
            m.new_full((m.shape[1],), 1 / m.shape[1], dtype=_at_least_float32(m)) for m in maps_a
        ]
        return layered_distance(maps_a, maps_b, weights)


def layered_distance(
    maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], weights: Sequence[Tensor]
) -> Rows:
    """sum_l mean_hw w_l . (u_l(a) - u_l(b))^2 of maps (n, c_l, h_l, w_l) and weights (c_l)."""
    layers = [
        # not a matrix product, which autocast would compute in half precision
        ((_normalize_channels(a) - _normalize_channels(b)).square().mean((2, 3)) * weight).sum(1)
        for a, b, weight in zip(maps_a, maps_b, weights, strict=True)
    ]
    return torch.stack(layers).sum(0)


def resize_bilinear(images: Float[Tensor, "n c h w"], size: int | None) -> Float[Tensor, "n c i j"]:
    """Resize to size x size by bilinear interpolation, antialiased if either side shrinks.

    The aspect ratio is not preserved. None returns the images unchanged.
    """
    if size is None or images.shape[2:] == (size, size):
        return images
    shrinks = max(images.shape[2:]) > size
    return F.interpolate(
        images, (size, size), mode="bilinear", align_corners=False, antialias=shrinks
    )


def check_range(a: Tensor, b: Tensor, *, strict: bool = True) -> tuple[Signed, Signed]:
    """Return both if they are float images of one shape in [-1, 1], or in ±16 if not `strict`.

    On a GPU, each call waits until the largest and smallest values are computed.

    Raises: InputError with the actual dtype, shapes or range.
    """
    for images in (a, b):
        if not images.is_floating_point():
            raise InputError(
                f"a perceptual distance takes float images in [-1, 1], not {_dtype_name(images)}; "
                f"convert uint8 by images.float() / 127.5 - 1"
            )
    if a.ndim != 4 or a.shape != b.shape:
        raise InputError(
            f"a perceptual distance takes two batches (n, c, h, w) of one shape, not "
            f"{tuple(a.shape)} and {tuple(b.shape)}; make them equal"
        )
    low, high = _extremes(a, b)
    inside = -1 - TOLERANCE <= low and high <= 1 + TOLERANCE
    if not strict:
        finite = math.isfinite(low) and math.isfinite(high)
        inside = not finite or max(-low, high) <= LOSS_LIMIT
    if not inside:
        is_uint8_range = high > LOSS_LIMIT and low >= -1 - TOLERANCE
        hint = "divide by 127.5 and subtract 1" if is_uint8_range else "scale or clamp them"
        raise InputError(
            f"a perceptual distance takes images in [-1, 1], but these are in "
            f"[{low:.4g}, {high:.4g}]; {hint}"
        )
    return a, b


def _extremes(a: Tensor, b: Tensor) -> tuple[float, float]:
    if a.numel() == 0:
        return 0.0, 0.0
    ends = [end for images in (a, b) for end in images.detach().aminmax()]
    low_a, high_a, low_b, high_b = torch.stack(ends).tolist()
    # Python's min and max ignore a NaN in second place
    if math.isnan(low_a) or math.isnan(low_b):
        return math.nan, math.nan
    return min(low_a, low_b), max(high_a, high_b)


def _normalize_channels(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Scale the channels of each pixel to length 1; zeros stay zero."""
    x = x.to(_at_least_float32(x))  # in float16, 1e-8 would be 0
    return x / (EPS + x.square().sum(1, keepdim=True)).sqrt()


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _freeze(trunk: Trunk) -> Trunk:
    """Turn the weights into buffers that are not saved.

    The module that contains the trunk moves them to its device, but does not include them in
    checkpoints, optimisers and averages, because they are the constants of a published file.
    """
    for part in trunk.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, weight.detach(), persistent=False)
    return trunk


def _check_size(size: int | None) -> int | None:
    if size is not None and size < 1:
        raise InputError(f"size is {size} pixels; it must be at least 1, or be left out")
    return size


def _dtype_name(images: Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")
