"""`CaptionPool`: the captions of a data set, among which that of an image must be found."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch

from fewstep.errors import InputError
from fewstep.metrics.extractors.base import ReferenceImages

CANDIDATES = 100
"""Captions among which the prompt of an image must be found."""


@runtime_checkable
class CaptionedImages(ReferenceImages, Protocol):
    """Real images with captions, such as a `data.ImageSet`."""

    @property
    def captions(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def columns(self) -> Mapping[str, Any]: ...


def check_captions(images: ReferenceImages) -> CaptionedImages:
    """The images.  Raises: InputError if they have no captions."""
    if not isinstance(images, CaptionedImages) or not any(images.captions):
        raise InputError(
            f"the measure text-match learns from captions, and {images.name} has none: leave the "
            "measure out, or choose a set with captions"
        )
    return images


def bases(images: CaptionedImages) -> list[str]:
    """What each image shows, without its skin tone: the column `base`, or the first caption."""
    if "base" in images.columns:
        return list(images.columns["base"])
    return [each[0] if each else "" for each in images.captions]


class CaptionPool:
    """Captions of one or more sets, with the `base` and the `tone` of their images.

    Sets without these columns have the captions of each image as a base of their own, without tone.
    Tones of two persons, which contain a comma, take no part in the comparison of tones.
    """

    def __init__(self, sets: Iterable[CaptionedImages]) -> None:
        self._tones: defaultdict[str, dict[str, str]] = defaultdict(dict)  # base: {tone: caption}
        self._places: defaultdict[str, dict[tuple[str, str], None]] = defaultdict(dict)
        for images in sets:
            rows = bases(images)
            tones = images.columns.get("tone", [""] * len(rows))
            for base, tone, captions in zip(rows, tones, images.captions, strict=True):
                for caption in captions:
                    self._tones[base].setdefault(tone, caption)
                    self._places[caption][base, tone] = None
        self._bases = [*self._tones]

    def __len__(self) -> int:
        """Number of bases."""
        return len(self._bases)

    @property
    def captions(self) -> list[str]:
        """All different captions."""
        return [*self._places]

    def rivals(self, prompt: str) -> list[str]:
        """Up to 99 captions of other bases, which depend on the prompt alone.

        They have the prompt's tone if the other base has it, else none, so that the tone tells
        little about the base.
        """
        places = self._places.get(prompt, {})
        own = {base for base, _ in places}
        tone = next(iter(places), ("", ""))[1]
        seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:7], "big")
        order = torch.randperm(len(self._bases), generator=torch.Generator().manual_seed(seed))
        rivals: dict[str, None] = {}
        for base in (self._bases[i] for i in order.tolist()):
            caption = self._caption(base, tone)
            if base not in own and caption != prompt:
                rivals[caption] = None
            if len(rivals) == CANDIDATES - 1:
                break
        return [*rivals]

    def other_tones(self, prompt: str) -> list[str]:
        """The captions of the prompt's base in its other tones; none for two persons' tones."""
        base, tone = next(iter(self._places.get(prompt, {})), ("", ""))
        if "," in tone or base not in self._tones:
            return []
        tones = self._tones[base]
        return [tones[name] for name in tones if name != tone and "," not in name]

    def _caption(self, base: str, tone: str) -> str:
        tones = self._tones[base]
        return tones.get(tone) or tones.get("") or next(iter(tones.values()))
