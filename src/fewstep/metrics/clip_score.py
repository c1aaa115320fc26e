"""`clip-score`: the cosine between images and prompts in the embedding of a published CLIP."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from fewstep.download import home
from fewstep.errors import InputError
from fewstep.metrics.extractors.base import BATCH, ReferenceImages
from fewstep.metrics.extractors.pretrained import as_colour
from fewstep.metrics.extractors.resize import resize_images
from fewstep.metrics.extractors.weights import weights_digest
from fewstep.metrics.measures import ExtraMeasure, Measure, PromptMeasure
from fewstep.precision import float32_products

NAME = "clip-vit-base-patch32"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training images, with pixels in [0, 1]."""
CLIP_SCORE = Measure(
    "clip_score",
    "CLIP score",
    "higher",
    "100 times the mean cosine between the embeddings of a sample and its prompt in CLIP, negative "
    "ones as 0.",
)


class ClipScore(PromptMeasure):
    """100 · max(cosine, 0): the score of Hessel et al. 2021, arXiv:2104.08718, with 100 for 2.5."""

    key = CLIP_SCORE.key

    def __init__(self, network: Any, tokenizer: Any) -> None:
        """`network` and `tokenizer` are transformers' `CLIPModel` and `CLIPTokenizer`."""
        self.network = network.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.size: int = network.config.vision_config.image_size
        self.hash = weights_digest(network, NAME)

    @classmethod
    def create(
        cls,
        images: ReferenceImages,
        *,
        prompted: ReferenceImages | None = None,
        cache: Path | None = None,
    ) -> "ClipScore":
        """The measure with the weights in `$FEWSTEP_HOME/weights/clip-vit-base-patch32`, or else
        those of openai/clip-vit-base-patch32 on the hub.

        Raises: InputError if these or transformers are missing.
        """
        folder = home() / "weights" / NAME
        source = str(folder) if (folder / "config.json").is_file() else f"openai/{NAME}"
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every attempt
        try:
            from transformers import CLIPModel, CLIPTokenizer  # pyright: ignore

            return cls(CLIPModel.from_pretrained(source), CLIPTokenizer.from_pretrained(source))
        except ImportError as error:
            raise InputError(
                'the measure clip-score needs transformers: pip install "fewstep[hub]"'
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot load CLIP from {source} ({str(error).splitlines()[0]}); go online, or put "
                f"the files of openai/{NAME} into {folder}"
            ) from error

    def rows(
        self, images: UInt8[Tensor, "n c h w"], prompts: Sequence[str]
    ) -> Float[Tensor, "n 1"]:
        """The score of each image."""
        parts = range(0, len(images), BATCH)
        return torch.cat(
            [self._batch(images[i : i + BATCH], prompts[i : i + BATCH]) for i in parts]
        )

    @torch.no_grad()
    def _batch(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        mean, std = (255 * torch.tensor(moment).view(3, 1, 1) for moment in (MEAN, STD))
        resized = resize_images(as_colour(images.cpu().float()), self.size, "clean-bicubic")
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=77, return_tensors="pt"
        )
        with float32_products():
            output = self.network(pixel_values=(resized.clamp(0, 255) - mean) / std, **tokens)
        cosine = F.cosine_similarity(output.image_embeds, output.text_embeds)
        return 100 * cosine.clamp(min=0)[:, None]

    def values(self, rows: Float[Tensor, "n 1"]) -> tuple[ExtraMeasure, ...]:
        """The mean of the rows, with a 95 % interval by its standard error."""
        mean, low, high = rows.mean().item(), None, None
        if len(rows) > 1:
            half = 1.96 * rows.std().item() / math.sqrt(len(rows))
            low, high = mean - half, mean + half
        note = f"CLIP score: {NAME} ({self.hash[:12]})"
        return (ExtraMeasure(CLIP_SCORE, mean, low, high, note),)
