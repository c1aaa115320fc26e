"""The classes and prompts that samples have when they are compared with real images."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from fewstep.data import ImageSet
from fewstep.drawing import Turns
from fewstep.errors import InputError
from fewstep.sample_spec import SampleSpec


@dataclass(frozen=True)
class Requests:
    """Conditions that samples have in turn."""

    labels: Sequence[int] | None = None
    """Class numbers; None for the default of `drawing.conditions`."""
    prompts: Sequence[str] | None = None
    """Prompts; None for the default."""
    images: Sequence[int] | None = None
    """Numbers of the real images whose captions the prompts are; None if they are not captions."""
    classes: Sequence[int] | None = None
    """Classes of the real images that samples should belong to; None if that is not known."""
    cycle: int = 1
    """Number of samples after which all classes were requested equally often."""
    label_source: str = "none"
    """Where the classes come from: "in turn", "as in the set" or "none"."""
    prompt_source: str = "none"
    """Where the prompts come from: "captions of the set", "examples of the run" or "none"."""

    @property
    def turns(self) -> Turns:
        """The arguments of `drawing.generate`."""
        return {"labels": self.labels, "prompts": self.prompts}

    def classes_of(self, rows: range) -> Int64[Tensor, " b"] | None:
        """The class of the real images that each sample should belong to."""
        if self.classes is None:
            return None
        return torch.tensor([self.classes[row % len(self.classes)] for row in rows])

    def prompts_of(self, rows: range) -> list[str] | None:
        """The prompt of each sample; None if there are no prompts, or only those of the run."""
        if self.prompts is None:
            return None
        return [self.prompts[row % len(self.prompts)] for row in rows]


def make_requests(spec: SampleSpec, images: ImageSet, prompted: ImageSet | None = None) -> Requests:
    """Conditions with which samples of `spec` are distributed as the real images are.

    Prompts are the captions of the real images, or of `prompted`, the first one of each, in a
    random order that is always the same, with the classes of these images. Without text, the
    classes take turns, or have the frequencies of the real images if these differ by more than a
    tenth.

    Raises: InputError if both have the same classes in another order, or for `prompted` without
    captions, or with a generator that reads no prompts.
    """
    same = _same_classes(spec, images)
    if prompted is not None and (spec.text is None or not any(prompted.captions)):
        lack = "the generator reads no prompts" if spec.text is None else "it has none"
        raise InputError(f"the captions of {prompted.name} cannot be prompts: {lack}")
    if spec.text is not None:
        return _captions(spec, prompted or images, same)
    labels = _shares(images) if same else None
    return Requests(
        labels=labels,
        classes=(labels or range(spec.classes)) if same else None,
        cycle=1 if labels else max(spec.classes, 1),
        label_source="as in the set" if labels else "in turn" if spec.classes else "none",
    )


def _captions(spec: SampleSpec, images: ImageSet, same: bool) -> Requests:
    if not any(images.captions):
        text = f"{images.name} has no captions: samples have example prompts of the run in turn"
        warnings.warn(text, stacklevel=3)
        return Requests(prompt_source="examples of the run")
    order = _order(len(images))
    labels = None if images.labels is None else images.labels[order].tolist()
    return Requests(
        labels=labels if same else None,
        prompts=[images.captions[i][0] if images.captions[i] else "" for i in order],
        images=order,
        # a caption says what to draw, so that a class is known even to a network without classes
        classes=labels if same or not spec.classes else None,
        label_source="as in the set" if same else "none",
        prompt_source="captions of the set",
    )


def _shares(images: ImageSet) -> list[int] | None:
    """The labels of the real images, shuffled, so that samples have the same class frequencies.

    None if the set has no labels, or if its rarest class has more than 0.9 times as many images as
    its most frequent one; samples then take the classes in turn.
    """
    labels = images.labels
    if labels is None:
        return None
    counts = labels.bincount(minlength=images.classes)
    if counts.min() > 0.9 * counts.max():
        return None
    return labels[_order(len(labels))].tolist()


def _order(count: int) -> list[int]:
    """The numbers below `count` in a random order that is always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()


def _same_classes(spec: SampleSpec, images: ImageSet) -> bool:
    """Whether the classes of a generator are those of the real images, as far as names tell.

    Raises: InputError if they are the same in another order.
    """
    reference = SampleSpec(images.shape, images.classes, images.class_names)
    difference = spec.class_difference(reference)
    if difference and sorted(spec.class_names) == sorted(images.class_names):
        raise InputError(
            f"the generator and the reference set {images.name} have the same classes in another "
            f"order: {difference}; order them alike"
        )
    same = spec.classes > 0 and spec.classes == images.classes and not difference
    if spec.classes and images.classes and not same:
        text = difference or f"there are {spec.classes} and {images.classes}"
        text = f"the classes of the generator and of {images.name} differ ({text})"
        how = "take them in turn" if spec.text is None else "have none"
        warnings.warn(f"{text}: samples {how}, without an accuracy", stacklevel=4)
    return same
