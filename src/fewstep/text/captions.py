"""`CaptionTable`: the encoded captions of a data set, from which training draws."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from fewstep.condition import Text
from fewstep.download import cache
from fewstep.errors import InputError
from fewstep.tensor_file import NotOurs, read_tensor_file, write_tensor_file
from fewstep.text.base import TextEncoder, encoder_hash


class CaptionTable:
    """Captions of images: each image has any number of them, and one is drawn at a time.

    Equal captions are encoded once. An image without captions is unconditional.
    """

    def __init__(self, encoder: TextEncoder, captions: Sequence[Sequence[str]]) -> None:
        """`captions[i]` are those of image i."""
        lists = [list(each) or [""] for each in captions]
        numbers = {text: i for i, text in enumerate(dict.fromkeys(chain(*lists)))}
        self.texts = encode_once(encoder, [*numbers])
        self.numbers = torch.tensor([numbers[text] for text in chain(*lists)])
        self.counts = torch.tensor([len(each) for each in lists])
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, images: Int64[Tensor, " b"], uniform: Float[Tensor, " b"]) -> Text:
        """One caption of each image; `uniform` numbers in [0, 1) select it."""
        offset = (uniform * self.counts[images]).long()
        return self._rows(self.starts[images] + offset)

    def draw_any(self, uniform: Float[Tensor, " b"]) -> tuple[Int64[Tensor, " b"], Text]:
        """Random images and one caption of each: every pair of the two is equally likely."""
        entry = (uniform * len(self.numbers)).long()
        images = torch.searchsorted(self.starts, entry, right=True) - 1
        return images, self._rows(entry)

    def _rows(self, entries: Int64[Tensor, " b"]) -> Text:
        rows = self.numbers[entries]
        return Text(self.texts.tokens[rows], self.texts.mask[rows])


def encode_once(encoder: TextEncoder, texts: list[str]) -> Text:
    """Tokens of texts. Those of a slow encoder are stored in a file in `download.cache()`, which is
    mapped into memory.

    A damaged file is written anew. Without space or permission nothing is stored.
    """
    if not encoder.is_slow:
        return encoder.encode(texts)
    digest = hashlib.sha256(json.dumps([encoder_hash(encoder), texts]).encode()).hexdigest()
    path = cache() / "captions" / f"{digest}.safetensors"
    with suppress(InputError, NotOurs, KeyError):
        return _read(path)
    text = encoder.encode(texts)
    with suppress(OSError, InputError, NotOurs):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensor_file(path, {"tokens": text.tokens, "mask": text.mask}, {})
        return _read(path)
    return text


def _read(path: Path) -> Text:
    tensors, _ = read_tensor_file(path)
    return Text(tensors["tokens"], tensors["mask"])
