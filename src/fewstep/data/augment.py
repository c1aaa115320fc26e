"""EDM's augmentation of images, with labels that keep it out of the generated images.

A network that is trained on transformed images and is told how each was transformed, generates
untransformed ones where these labels are 0. Karras et al. 2022, arXiv:2206.00364, appendix F.2;
Karras et al. 2020, arXiv:2006.06676.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

AugmentKind = Literal["x-flip", "y-flip", "scale", "rotation", "anisotropy", "translation"]
ALL_KINDS: tuple[AugmentKind, ...] = get_args(AugmentKind)
RANDOM_NUMBERS = 14
"""Uniform random numbers that `Augmentation` takes per image."""
SCALE_STD = 0.2
"""Standard deviation of log2 of the scale and of the stretch."""
TRANSLATION_STD = 0.125
"""Standard deviation of the translation, relative to the side of the image."""
# EDM's filter, the wavelet sym6, is not symmetric: rotations by 90 degrees would not be exact, nor
# would images continue as their mirror image beyond the edge
ENLARGING_TAPS = (
    *(-0.0191798787373, 0.0486873844644, -0.00751972957105, -0.18082830669, 0.191349534129),
    *(0.967490996404, 0.967490996404),
    *(0.191349534129, -0.18082830669, -0.00751972957105, 0.0486873844644, -0.0191798787373),
)
"""Low-pass filter with a root-raised-cosine response of roll-off 0.4."""
SHRINKING_TAPS = (
    *(0.00339355533426, 0.00861440969066, -0.00782501408704, -0.0552354047618, 0.0560974790506),
    *(0.494954974773, 0.494954974773),
    *(0.0560974790506, -0.0552354047618, -0.00782501408704, 0.00861440969066, 0.00339355533426),
)
"""Its dual: enlarging and shrinking together change nothing."""


@dataclass(frozen=True)
class Transform:
    """How each of b images is transformed: mirrored, scaled, rotated, stretched and shifted."""

    x_flip: Bool[Tensor, " b"]
    """Whether left and right are exchanged."""
    y_flip: Bool[Tensor, " b"]
    """Whether top and bottom are exchanged."""
    scale: Float[Tensor, " b"]
    """log2 of the magnification, in units of 0.2."""
    angle: Float[Tensor, " b"]
    """Counterclockwise rotation, in radians."""
    stretch: Float[Tensor, " b"]
    """log2 of the factor of width, and of 1/height, in units of 0.2."""
    stretch_angle: Float[Tensor, " b"]
    """Counterclockwise rotation, in radians, of the axis along which the image is stretched."""
    shift: Float[Tensor, "b 2"]
    """Translation to the right and downwards, in units of 0.125 of width and height."""

    def labels(self) -> Float[Tensor, "b 9"]:
        """EDM's labels, 0 where nothing is transformed."""
        columns = [
            self.x_flip,
            self.y_flip,
            self.scale,
            torch.cos(self.angle) - 1,
            torch.sin(self.angle),
            self.stretch * torch.cos(self.stretch_angle),
            self.stretch * torch.sin(self.stretch_angle),
            *self.shift.unbind(1),
        ]
        return torch.stack([column.float() for column in columns], dim=1)

    def apply(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The transformed images. A row whose parameters are 0 is unchanged, bit for bit."""
        x = torch.where(_rows(self.x_flip), x.flip(-1), x)
        x = torch.where(_rows(self.y_flip), x.flip(-2), x)
        moves = (self.scale, self.angle, self.stretch, *self.shift.unbind(1))
        index = torch.stack(moves).ne(0).any(0).nonzero().flatten()
        if len(index) == 0:
            return x
        matrix, shift = self._inverse_matrix()[index].to(x), self.shift[index].to(x)
        return x.index_copy(0, index, _resample(x[index], matrix, shift))

    def _inverse_matrix(self) -> Float[Tensor, "b 2 2"]:
        """Matrix M: the image at position p from its centre was at M(p − shift)."""
        factor = torch.exp2(SCALE_STD * self.stretch)
        stretch = torch.diag_embed(torch.stack([1 / factor, factor], dim=1))
        turn = _rotation(self.stretch_angle)
        matrix = _product(_rotation(self.angle), turn.mT, stretch, turn)
        return matrix * torch.exp2(-SCALE_STD * self.scale)[:, None, None]


@dataclass(frozen=True)
class Augmentation:
    """EDM's augmentation: each kind of transform applies to an image with `probability`.

    The x-flip always applies with probability ½, as in EDM.
    """

    probability: float
    kinds: tuple[AugmentKind, ...] = ALL_KINDS

    def __call__(
        self, x: Float[Tensor, "b c h w"], uniform: Float[Tensor, "b 14"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b 9"]]:
        """Images transformed at random, and the labels of their transforms.

        `uniform` has random numbers in [0, 1). A row depends on its own image and numbers alone.
        """
        # in double precision, because functions of single numbers may differ in their last digits
        # from those of vectors, and so between batches of different sizes
        transform = self.draw(uniform.to(x.device, torch.float64))
        return transform.apply(x), transform.labels()

    def draw(self, uniform: Float[Tensor, "b 14"]) -> Transform:
        """A transform for each row of random numbers in [0, 1)."""
        mirror, *gates = uniform[:, :6].unbind(1)
        numbers = uniform[:, 6:]
        normal = torch.special.ndtri(numbers.clamp(min=2**-25))  # a number of 0 would be infinite
        angle = math.pi * (2 * numbers - 1)
        y_flip, scale, rotation, anisotropy, translation = (
            (gate < self.probability) & (kind in self.kinds)
            for kind, gate in zip(ALL_KINDS[1:], gates, strict=True)
        )
        tilted = anisotropy & (numbers[:, 4] < 0.5)
        return Transform(
            x_flip=(mirror < 0.5) & ("x-flip" in self.kinds),
            y_flip=y_flip & (numbers[:, 0] < 0.5),
            scale=normal[:, 1] * scale,
            angle=angle[:, 2] * rotation,
            stretch=normal[:, 3] * anisotropy,
            stretch_angle=angle[:, 5] * tilted,
            shift=normal[:, 6:8] * translation[:, None],
        )


def _rows(mask: Tensor) -> Tensor:
    return mask.view(-1, 1, 1, 1)


def _rotation(angle: Float[Tensor, " b"]) -> Float[Tensor, "b 2 2"]:
    """Matrices that rotate (right, down) clockwise."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _product(first: Tensor, *others: Tensor) -> Tensor:
    """The product of matrices (b, 2, 2), rounded alike in batches of every size."""
    for other in others:
        first = (first[..., None] * other[:, None]).sum(2)
    return first


def _resample(
    x: Float[Tensor, "b c h w"], matrix: Float[Tensor, "b 2 2"], shift: Float[Tensor, "b 2"]
) -> Float[Tensor, "b c h w"]:
    """The images at positions matrix·(p − shift), enlarged twofold meanwhile against aliasing.

    Outside, images continue as their mirror image about the centres of the pixels at the edge.
    """
    height, width = x.shape[-2:]
    sides = shift.new_tensor([width, height])
    horizontal, vertical = (
        torch.arange(-5, 2 * side + 5, device=x.device, dtype=x.dtype) / 2 - 0.25 - (side - 1) / 2
        for side in (width, height)
    )
    down, right = torch.meshgrid(vertical, horizontal, indexing="ij")
    offset = torch.stack([right, down], dim=-1) - (TRANSLATION_STD * sides * shift)[:, None, None]
    source = (matrix[:, None, None] * offset[..., None, :]).sum(-1)
    doubled = _double(_double(x).mT).mT
    moved = functional.grid_sample(
        doubled, 2 * source / (sides - 1), padding_mode="reflection", align_corners=False
    )
    return _halve(_halve(moved).mT).mT


def _double(x: Float[Tensor, "... w"]) -> Float[Tensor, "... _"]:
    """The last axis at twice the resolution, from the first pixel's centre to that of the last."""
    last = x.shape[-1] - 1
    position = torch.arange(-2, last + 3, device=x.device) % (2 * last)
    x = x[..., last - (last - position).abs()]
    phases = [
        sum((tap * x[..., i : i + last] for i, tap in enumerate(taps)), start=x.new_zeros(()))
        for taps in (ENLARGING_TAPS[10::-2], ENLARGING_TAPS[11::-2])
    ]
    return torch.stack(phases, dim=-1).flatten(-2)


def _halve(x: Float[Tensor, "... _"]) -> Float[Tensor, "... _"]:
    """The last axis at half the resolution, of samples that start 5 before the first one needed."""
    stop = x.shape[-1] - 11
    terms = (tap * x[..., i : i + stop : 2] for i, tap in enumerate(SHRINKING_TAPS))
    return sum(terms, start=x.new_zeros(()))
