"""`ImageSet`: images, labels and captions in memory, and how they are resized."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from fewstep.data.account import FileAccount
from fewstep.errors import InputError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images, with optional class labels and columns of text, one string per image.

    `class_names[i]` is the name of label i. We use the columns `file_name`, `base` and `tone`.
    """

    name: str
    images: UInt8[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"] | None = None
    class_names: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    files: FileAccount | None = None
    """What became of every file in the folder that the images were read from."""
    captions: tuple[tuple[str, ...], ...] = ()
    """The captions of each image, which may have none or several; empty for a set without any."""

    def __post_init__(self) -> None:
        if self.captions and len(self.captions) != len(self.images):
            raise InputError(
                f"{self.name} has {len(self.images):,} images, but captions of "
                f"{len(self.captions):,}: list one tuple of captions for each image"
            )
        if self.labels is None or not self.class_names:
            return
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.class_names):
            raise InputError(
                f"{self.name}: labels range from {low} to {high}, but {len(self.class_names)} "
                f"classes allow only 0 to {len(self.class_names) - 1}; the labels are damaged or "
                "belong to another data set"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        c, h, w = self.images.shape[1:]
        return c, h, w

    @property
    def classes(self) -> int:
        """Number of classes; 0 without labels."""
        if self.labels is None:
            return 0
        return len(self.class_names) or int(self.labels.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of shape, pixels, labels and captions. It identifies the images of a score."""
        labelled = self.labels is not None
        digest = hashlib.sha256(f"{tuple(self.images.shape)} labelled={labelled}".encode())
        digest.update(np.ascontiguousarray(self.images.numpy()).data)
        if self.labels is not None:
            digest.update(self.labels.numpy().astype("<i8").data)
        if self.captions:
            digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()

    def resize(self, size: int) -> "ImageSet":
        """The same set with its images resized to `size` x `size` pixels by `resize_to_square`.

        Pillow computes in integers, so that the pixels and their fingerprint are the same on every
        machine. It antialiases, which changes scores: Parmar et al. 2022, arXiv:2104.11222.
        """
        n, c, h, w = self.images.shape
        if (h, w) == (size, size):
            return self
        resized = np.empty((n * c, size, size), np.uint8)
        for i, plane in enumerate(self.images.reshape(-1, h, w).numpy()):
            resized[i] = np.asarray(resize_to_square(Image.fromarray(plane), size))
        return replace(self, images=torch.from_numpy(resized).reshape(n, c, size, size))

    def with_channels(self, channels: int) -> "ImageSet":
        """The same set with this number of channels: grey images as RGB, or RGB images as grey.

        Grey is ITU-R 601's luma, (19595·R + 38470·G + 7471·B + 2¹⁵)/2¹⁶ rounded down, as in Pillow.

        Raises: InputError for other numbers of channels.
        """
        present = self.shape[0]
        if channels == present:
            return self
        if (present, channels) == (1, 3):
            return replace(self, images=self.images.expand(-1, 3, -1, -1).contiguous())
        if (present, channels) != (3, 1):
            raise InputError(
                f"the images of {self.name} have shape {self.shape}, and {channels} channels are "
                "needed; only grey and RGB images are converted into each other"
            )
        grey = torch.empty_like(self.images[:, :1])
        weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32).view(3, 1, 1)
        for batch, target in zip(self.images.split(1024), grey.split(1024), strict=True):
            luma = (batch.int() * weights).sum(1, keepdim=True) + (1 << 15)
            target.copy_(luma >> 16)
        return replace(self, images=grey)


def check_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Raises: InputError if the set `name` has no such split."""
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}; choose {' or '.join(splits)}")


def resize_to_square(image: Image.Image, size: int) -> Image.Image:
    """Scale the shorter side to `size` (bicubic, antialiased) and crop the longer at both ends."""
    return ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
