"""`text-match`: how often the prompt of a sample is found among other captions."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from fewstep.errors import InputError
from fewstep.formatting import percent, quantity
from fewstep.metrics.extractors.base import ReferenceImages
from fewstep.metrics.measures import ExtraMeasure, Measure, PromptMeasure
from fewstep.metrics.text_match.captions import (
    CANDIDATES,
    CaptionedImages,
    CaptionPool,
    check_captions,
)
from fewstep.metrics.text_match.training import Scorer, scorer_for

TEXT_MATCH = Measure(
    "text_match",
    "Text match",
    "higher",
    "Share of the samples whose prompt a small network, trained on the real images and their "
    f"captions, finds among {CANDIDATES} captions of different content. Chance is "
    f"{1 / CANDIDATES:.0%}.",
    format="percent",
)
TONE_MATCH = Measure(
    "tone_match",
    "Skin tone match",
    "higher",
    "Share of the samples whose skin tone the network finds among the captions that differ in it "
    "alone. Chance is about one sixth.",
    format="percent",
)

MAX_REAL = 10_000  # real images that are measured beside the samples


class TextMatch(PromptMeasure):
    """The measures `text_match` and `tone_match` of images with prompts."""

    key = TEXT_MATCH.key

    def __init__(self, scorer: Scorer, pool: CaptionPool, *, note: str = "") -> None:
        """`note` is what to know about the values, in one sentence."""
        self.scorer, self.pool, self.note = scorer, pool, note
        self._vectors: dict[str, Tensor] = {}
        self._embed(pool.captions)

    @classmethod
    def create(
        cls,
        images: ReferenceImages,
        *,
        prompted: ReferenceImages | None = None,
        cache: Path | None = None,
    ) -> "TextMatch":
        """The measures for samples that are compared with `images`; the network is read from
        `cache`, or trained on `images` and saved.

        Raises: InputError if the images have no captions, or the same one all.
        """
        sets = [check_captions(each) for each in (images, prompted) if each is not None]
        pool = CaptionPool(sets)
        if len(pool.captions) < 2:
            raise InputError(
                f"the measure text-match compares captions, and those of {images.name} are all "
                "the same: leave the measure out, or choose a set with different captions"
            )
        measure = cls(scorer_for(sets[0], cache=cache), pool)
        measure.note = measure.describe(sets[-1])
        return measure

    def describe(self, images: CaptionedImages) -> str:
        """What real images with the same prompts reach, in a sentence."""
        rows = [i for i, captions in enumerate(images.captions) if captions][:MAX_REAL]
        real = self.rows(images.images[rows], [images.captions[i][0] for i in rows])
        texts = " and ".join(
            f"{each.measure.label} {percent(each.value)}" for each in self.values(real)
        )
        count = quantity(len(rows), "real image")
        few = len(self.pool)
        chance = f"; with {few} captions, chance is {percent(1 / few)}" if few < CANDIDATES else ""
        return f"{texts} for {count} with these captions (scorer {self.scorer.hash[:12]}){chance}"

    def rows(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float[Tensor, "n 2"]:
        """For each image, 1 or 0: whether its prompt is found, and whether its tone is.

        NaN for a prompt without other tones.
        """
        self._embed(prompts)
        vectors = self.scorer.network.embed_images(images.cpu())
        return torch.tensor(
            [
                [
                    self._is_nearest(vector, prompt, self.pool.rivals(prompt)),
                    self._is_nearest(vector, prompt, self.pool.other_tones(prompt)),
                ]
                for vector, prompt in zip(vectors, prompts, strict=True)
            ]
        )

    def values(self, rows: Float[Tensor, "n 2"]) -> tuple[ExtraMeasure, ...]:
        """The measures of all rows; those without any row are left out."""
        measures: list[ExtraMeasure] = []
        for measure, column in zip((TEXT_MATCH, TONE_MATCH), rows.T, strict=True):
            hits = column[~column.isnan()]
            if len(hits):
                low, high = wilson_interval(int(hits.sum()), len(hits))
                measures.append(ExtraMeasure(measure, hits.mean().item(), low, high, self.note))
        return tuple(measures)

    def _is_nearest(self, vector: Tensor, prompt: str, rivals: Sequence[str]) -> float:
        """1 if the prompt is nearer to an image than all rivals, else 0; NaN without rivals."""
        if not rivals:
            return math.nan
        others = torch.stack([self._vectors[rival] for rival in rivals])
        return float(self._vectors[prompt] @ vector > (others @ vector).max())

    def _embed(self, captions: Sequence[str]) -> None:
        new = [*dict.fromkeys(caption for caption in captions if caption not in self._vectors)]
        if new:
            vectors = self.scorer.network.embed_text(self.scorer.encoder.encode(new))
            self._vectors |= dict(zip(new, vectors, strict=True))


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score (1927, doi:10.2307/2276774)."""
    z = 1.959964
    share, weight = hits / count, z * z / count
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / count / 4)
    return max(middle - half, 0.0), min(middle + half, 1.0)
