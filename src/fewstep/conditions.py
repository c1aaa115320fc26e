"""The conditions that a recipe trains on: classes and captions of its data, prompts of a file."""

from itertools import chain
from pathlib import Path

from fewstep.batching import Prompts
from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.recipe import Recipe
from fewstep.sample_spec import MAX_PROMPTS, SampleSpec
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
    count = min(len(captions), MAX_PROMPTS)
    return tuple(captions[i * len(captions) // count] for i in range(count))


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
            " set data.captions=false to train without text"
        )
    return CaptionTable(spec.text, images.captions)


def prompts(recipe: Recipe, images: ImageSet, spec: SampleSpec) -> Prompts | None:
    """The prompts that a method generates from; None for a network without text.

    They are the lines of the file `data.prompts`, or the captions of the images with the images'
    classes, if any.
    """
    if spec.text is None:
        return None
    if recipe.data.prompts is None:
        table = caption_table(images, spec)
        assert table
        return Prompts(table, images.labels if spec.classes else None)
    lines = read_prompts(Path(recipe.data.prompts))
    return Prompts(CaptionTable(spec.text, [[line] for line in lines]), None)


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file, each a prompt; an empty line is the empty prompt.

    Raises: InputError for a file without lines, or one that is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error
    if not any(line.strip() for line in lines):
        raise InputError(f"{path} has no prompts: write one on each line")
    return lines
