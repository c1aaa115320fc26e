"""The conditions that a recipe trains on: classes and captions of its data, prompts of a file."""

import hashlib
import json
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch

from fewstep.batching import Prompts
from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.paths import read_text
from fewstep.recipe import Recipe
from fewstep.sample_spec import MAX_PROMPTS, SampleSpec, evenly_spread
from fewstep.text.base import TextEncoder
from fewstep.text.captions import CaptionTable


def data_spec(recipe: Recipe, images: ImageSet, *sources: Generator | None) -> SampleSpec:
    """Shape and conditions of what a recipe trains a network to generate.

    `sources` are the teacher and the network of `student.init`; a student reads prompts by their
    text encoder, so that a recipe need not name it again.

    Raises: InputError for a text encoder that differs from theirs, or without captions to learn
    from.
    """
    text = _text_encoder(recipe, images, sources)
    has_classes = recipe.data.labels and images.labels is not None
    return SampleSpec(
        images.shape,
        images.classes if has_classes else 0,
        images.class_names if has_classes else (),
        text=text,
        prompts=() if text is None else examples(images),
    )


def examples(images: ImageSet) -> tuple[str, ...]:
    """At most MAX_PROMPTS different captions of a set, evenly spread over its images."""
    captions = [*dict.fromkeys(each[0] for each in images.captions if each)]
    return evenly_spread(captions, MAX_PROMPTS)


def _text_encoder(
    recipe: Recipe, images: ImageSet, sources: tuple[Generator | None, ...]
) -> TextEncoder | None:
    if not recipe.data.captions:
        return None
    encoders = [source.spec.text for source in sources if source and source.spec.text]
    if recipe.text is None:
        return encoders[0] if encoders else None
    encoder = recipe.text.fit([*chain(*images.captions)])
    if any(other != encoder for other in encoders):
        raise InputError(
            "the text encoder of [text] is not the one that the teacher, or the network of "
            "student.init, was trained with: remove [text] from the recipe to use theirs"
        )
    return encoder


def caption_table(images: ImageSet, spec: SampleSpec) -> CaptionTable | None:
    """The encoded captions of the images; None for a network without text.

    Raises: InputError if the set has no captions.
    """
    if spec.text is None:
        return None
    if not any(images.captions):
        raise InputError(
            f"the network reads prompts, and {images.name} has no captions: add them to the set, or"
            " name a text file by data.prompts if the method learns from no images of the set"
        )
    return CaptionTable(spec.text, images.captions)


def prompts(
    recipe: Recipe, images: ImageSet, spec: SampleSpec, captions: CaptionTable | None
) -> Prompts | None:
    """The prompts that a method generates from; None for a network without text.

    They are the lines of the file `data.prompts`, or the `captions` of the images with the images'
    classes, if any.

    Raises: InputError for a file and a network without text, and as `read_prompts`.
    """
    path = recipe.data.prompts
    if spec.text is None and path is not None:
        raise InputError(
            f"data.prompts is {path}, and this network reads no prompts: remove that key, or train "
            "on captions"
        )
    if spec.text is None:
        return None
    if path is None:
        assert captions
        return Prompts(captions, images.labels if spec.classes else None)
    lines = read_prompts(Path(path))
    digest = hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    return Prompts(CaptionTable(spec.text, [[line] for line in lines]), None, hash=digest)


class Turns(NamedTuple):
    """Prompts, and as many class numbers or none, that rows have in turn."""

    prompts: tuple[str, ...]
    labels: tuple[int, ...] = ()


def captions_in_turn(images: ImageSet, spec: SampleSpec, *, count: int | None = None) -> Turns:
    """All captions of a set with the classes of their images, in a random order that is always the
    same, so that any number of them is a sample of the set. At most `count` are returned.

    An image without captions has "", which is no prompt.

    Raises: InputError if the set has no captions.
    """
    if not any(images.captions):
        raise InputError(
            f"the run reads prompts, and {images.name} has no captions: name a set "
            "with captions by --data, or a file by --prompts"
        )
    entries = [(caption, i) for i, each in enumerate(images.captions) for caption in each or ("",)]
    order = torch.randperm(len(entries), generator=torch.Generator().manual_seed(0))
    first = [entries[k] for k in order[:count].tolist()]
    labels = images.labels if spec.classes else None
    return Turns(
        tuple(caption for caption, _ in first),
        () if labels is None else tuple(int(labels[i]) for _, i in first),
    )


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file, each a prompt; an empty line is the empty prompt.

    Raises: InputError for a file without prompts, and as `paths.read_text`.
    """
    lines = read_text(path).splitlines()
    if not any(line.strip() for line in lines):
        raise InputError(f"{path} has no prompts: write one on each line")
    return lines
