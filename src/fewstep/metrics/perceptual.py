"""Distances between images as a network sees them: LPIPS, and the same sum without its weights.

Both take images in [-1, 1] and nothing else. Integers and values far outside are refused; images
in [0, 1] cannot be told from dark ones in [-1, 1], so their caller must know: 2 * images - 1.
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
from fewstep.metrics.features import digest
from fewstep.metrics.trunks import Trunk

Signed = Float[Tensor, "n c h w"]
"""Images in [-1, 1]: -1 is black, 1 is full. Not [0, 1], and not the [0, 255] of uint8."""

Rows = Float[Tensor, " n"]
Maps = Callable[[Tensor], list[Tensor]]

EPS = 1e-8
TOLERANCE = 1e-3  # beyond [-1, 1]: rounding, in half precision too
FAR = 16.0  # no image and no standard normal noise is out here; an image in [0, 255] is


class ImageDistance(ABC):
    """One number a pair of images: for measuring when called, for training by `loss`."""

    def __call__(self, a: Tensor, b: Tensor) -> Rows:
        """The distance of each pair, for measuring.

        Raises: InputError for images that are not floats in [-1, 1], or not of one shape.
        """
        return self._distance(*in_range(a, b))

    def loss(self, a: Tensor, b: Tensor) -> Rows:
        """The same number, for training: a student may overshoot [-1, 1].

        Only finite values beyond 16 raise. NaN and infinity come through, for whoever watches
        the loss.
        """
        return self._distance(*in_range(a, b, strict=False))

    @abstractmethod
    def _distance(self, a: Signed, b: Signed) -> Rows: ...


class Lpips(ImageDistance, nn.Module):
    """LPIPS version 0.1: how far apart two images look to people.

    d(a, b) = sum_l mean_hw w_l . (u_l(a) - u_l(b))^2,  u = x / sqrt(1e-8 + sum_c x^2),

    with x_l the maps of `trunk` and w_l >= 0 the published `heads`, fitted to human judgements
    (Zhang et al. 2018, arXiv:1801.03924). At least 0, which equal images have, and seldom above 1;
    values of different trunks do not compare. The 1e-8 lies under the root, as in torchmetrics:
    the original adds 1e-10 to the root, whose gradient in x is NaN where all channels are 0.

    Grey images are repeated to three channels. `size` brings all to size x size before the trunk
    (see `resized`): the trunks know photographs, and a loss on 32 x 32 images is usually given
    64 or 224 (the latter by Song et al. 2023, arXiv:2303.01469).

    The trunk is copied, and its weights are frozen.

    Raises: InputError where the heads are not the trunk's, or `size` is below 1.
    """

    shift: Tensor
    scale: Tensor
    hash: str
    """Sixteen digits that change with any weight."""

    def __init__(self, trunk: Trunk, heads: Sequence[Tensor], *, size: int | None = None) -> None:
        super().__init__()
        given, needed = tuple(head.numel() for head in heads), trunk.channels
        if given != needed:
            raise InputError(
                f"LPIPS heads have {given} weights, but the maps of the {trunk.name} trunk have "
                f"{needed} channels; give the heads of that trunk, in order"
            )
        self.size = _valid(size)
        told = " ".join(repr(head.flatten().tolist()) for head in heads)
        self.hash = digest(trunk, told)
        self.trunk = _frozen(copy.deepcopy(trunk))
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
                f"LPIPS takes images of 1 or 3 channels, not {images.shape[1]}; pick three of them"
            )
        scaled = (images.to(self.scale.dtype) - self.shift) / self.scale  # 1 channel becomes 3
        return self.trunk.feature_maps(resized(scaled, self.size))


class FeatureDistance(ImageDistance):
    """The sum that LPIPS is, over any maps and with all weights of a map 1 / channels.

    d(a, b) = sum_l mean_hw mean_c (u_l(a) - u_l(b))^2,  u = x / sqrt(1e-8 + sum_c x^2).

    For machines and kinds of image without published weights; this is the unweighted baseline of
    Zhang et al. 2018, arXiv:1801.03924, and its numbers are not LPIPS. Each map adds between
    0 and 4 / channels.

    `maps` takes images in [-1, 1] with the channels that it knows, and gives one (n, c, h, w) a
    depth; it must let the gradient through, and freezing its weights is its owner's task. `size`
    brings images to size x size before it, see `resized`.

    Raises: InputError where `size` is below 1.
    """

    def __init__(self, maps: Maps, *, size: int | None = None) -> None:
        self.maps, self.size = maps, _valid(size)

    def _distance(self, a: Signed, b: Signed) -> Rows:
        maps_a, maps_b = (self.maps(resized(images, self.size)) for images in (a, b))
        even = [m.new_full((m.shape[1],), 1 / m.shape[1], dtype=_wide(m)) for m in maps_a]
        return layered_distance(maps_a, maps_b, even)


def layered_distance(
    maps_a: Sequence[Tensor], maps_b: Sequence[Tensor], weights: Sequence[Tensor]
) -> Rows:
    """sum_l mean_hw w_l . (u_l(a) - u_l(b))^2 of maps (n, c_l, h_l, w_l) and weights (c_l)."""
    layers = [
        # not a matrix product, which autocast would do in half precision
        ((_unit(a) - _unit(b)).square().mean((2, 3)) * weight).sum(1)
        for a, b, weight in zip(maps_a, maps_b, weights, strict=True)
    ]
    return torch.stack(layers).sum(0)


def resized(images: Float[Tensor, "n c h w"], size: int | None) -> Float[Tensor, "n c i j"]:
    """Bilinear to size x size, whatever the aspect was; without corner alignment.

    Antialiased where either side shrinks, so that every pixel counts. None changes nothing.
    """
    if size is None or images.shape[2:] == (size, size):
        return images
    shrinks = max(images.shape[2:]) > size
    return F.interpolate(
        images, (size, size), mode="bilinear", align_corners=False, antialias=shrinks
    )


def in_range(a: Tensor, b: Tensor, *, strict: bool = True) -> tuple[Signed, Signed]:
    """The two, if they are float images of one shape, in [-1, 1]; with `strict` off, within 16.

    Reads the extremes back to the host, so a GPU is waited for once a call.

    Raises: InputError, which names what was found.
    """
    for images in (a, b):
        if not images.is_floating_point():
            raise InputError(
                f"a perceptual distance takes float images in [-1, 1], not {_kind(images)}; "
                f"for uint8 give images.float() / 127.5 - 1"
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
        inside = not finite or max(-low, high) <= FAR
    if not inside:
        bytelike = high > FAR and low >= -1 - TOLERANCE
        hint = "divide by 127.5 and subtract 1" if bytelike else "scale or clamp them"
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
    # min and max of Python lose a NaN in second place
    if math.isnan(low_a) or math.isnan(low_b):
        return math.nan, math.nan
    return min(low_a, low_b), max(high_a, high_b)


def _unit(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Each place's channels at length 1; where they are all 0, they stay 0."""
    x = x.to(_wide(x))  # under autocast, 1e-8 would be 0 in float16
    return x / (EPS + x.square().sum(1, keepdim=True)).sqrt()


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _frozen(trunk: Trunk) -> Trunk:
    """Its weights as buffers that are not saved.

    So they follow the module around them to a device, but are in no checkpoint, no optimiser and
    no average of that module: they are a evaluator, known by their file, and not its state.
    """
    for part in trunk.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, weight.detach(), persistent=False)
    return trunk


def _valid(size: int | None) -> int | None:
    if size is not None and size < 1:
        raise InputError(f"size is {size}; it counts pixels and must be at least 1, or be left out")
    return size


def _kind(images: Tensor) -> str:
    return str(images.dtype).removeprefix("torch.")
