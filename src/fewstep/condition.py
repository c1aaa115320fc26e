"""Conditions of generation: one value that accompanies a batch of images.

A `Condition` holds class labels, encoded prompts and labels of augmentation. Only data sets and
text encoders, which create conditions, and backbones, which embed them, access its fields, so a new
kind of condition needs no change elsewhere.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

NO_LABEL = -1  # label of a row without a class
AUGMENT_LABELS = 9
"""Labels of EDM's augmentation per row: x-flip, y-flip, scale, rotation (2), anisotropy (2) and
translation (2)."""


@dataclass(frozen=True)
class TextInput:
    """What a network receives for a prompt: up to `length` tokens.

    A token is an id below `vocabulary`, or a vector of `features` numbers; the other of the two
    is 0.
    """

    length: int
    vocabulary: int = 0
    features: int = 0


@dataclass(frozen=True)
class Text:
    """Encoded prompts, one row each."""

    tokens: Int64[Tensor, "b n"] | Float[Tensor, "b n d"]
    """Ids of tokens, or their features. Those outside the mask have no meaning."""
    mask: Bool[Tensor, "b n"]
    """True for the tokens of the prompt. A row without tokens is unconditional."""


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch, one row each. At least one of the fields is not None."""

    label: Int64[Tensor, " b"] | None = None
    """A class number, or -1 for none. None for images without classes."""
    augment_labels: Float[Tensor, "b 9"] | None = None
    """How the images were augmented in training, see `data.augment`; 0, like None, means that they
    were not."""
    text: Text | None = None
    """Prompts. None for images without captions."""

    def __len__(self) -> int:
        return len(next(iter(self.tensors().values())))

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        return self._map(lambda tensor: tensor[rows])

    def to(self, device: torch.device | str) -> "Condition":
        return self._map(lambda tensor: tensor.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, with one row each; `from_tensors` builds the condition again."""
        tensors = {"label": self.label, "augment_labels": self.augment_labels}
        if self.text is not None:
            tensors |= {"tokens": self.text.tokens, "token_mask": self.text.mask}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "Condition | None":
        """The condition of `tensors`, which may contain others; None if they contain none."""
        text = None
        if "tokens" in tensors:
            text = Text(tensors["tokens"], tensors["token_mask"])
        cond = Condition(tensors.get("label"), tensors.get("augment_labels"), text)
        return cond if cond.tensors() else None

    def is_present(self) -> Bool[Tensor, " b"]:
        """Whether each row has a class or a prompt."""
        present: Tensor | None = None if self.label is None else self.label != NO_LABEL
        if self.text is not None:
            prompt = self.text.mask.any(1)
            present = prompt if present is None else present | prompt
        rows = next(iter(self.tensors().values()))
        return rows.new_zeros(len(self), dtype=torch.bool) if present is None else present

    def null(self, negative: Text | None = None) -> "Condition":
        """The same number of rows, without class and prompt. They keep their labels of
        augmentation.

        A `negative` of one row takes the place of their prompts, if they have text.
        """
        label, text = self.label, self.text
        if text is not None and negative is not None:
            tokens, mask = negative.tokens.expand_as(text.tokens), negative.mask
            text = Text(tokens, mask.expand_as(text.mask))
        elif text is not None:
            text = replace(text, mask=torch.zeros_like(text.mask))
        label = None if label is None else torch.full_like(label, NO_LABEL)
        return replace(self, label=label, text=text)

    def drop(self, drop: Tensor) -> "Condition":
        """The same rows, without class and prompt where the boolean vector `drop` is true.

        They keep their labels of augmentation, without which the augmentation would leak.
        """
        label, text = self.label, self.text
        return replace(
            self,
            label=None if label is None else torch.where(drop, NO_LABEL, label),
            text=None if text is None else replace(text, mask=text.mask & ~drop[:, None]),
        )

    def concat(self, other: "Condition") -> "Condition":
        """These rows, followed by those of `other`; both have the same fields."""
        others = other.tensors()
        pairs = {name: torch.cat([rows, others[name]]) for name, rows in self.tensors().items()}
        cond = Condition.from_tensors(pairs)
        assert cond is not None
        return cond

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        """The condition with `function` applied to each tensor."""
        cond = Condition.from_tensors({k: function(v) for k, v in self.tensors().items()})
        assert cond is not None
        return cond


def row_labels(cond: Condition | None, rows: int) -> Int64[Tensor, " b"]:
    """The class number of each of `rows` rows, -1 for none."""
    no_labels = torch.full((rows,), NO_LABEL)
    return no_labels if cond is None or cond.label is None else cond.label


def with_augment_labels(cond: Condition | None, labels: Float[Tensor, "b 9"]) -> Condition:
    """The condition of the same images, augmented: with `labels` that say how."""
    return replace(cond or Condition(), augment_labels=labels)
