"""`fewstep doctor`: list the device, data sets, weights and extras, and how to get missing ones.

`fewstep doctor DATA` describes one data set, and `fewstep doctor RUN` checks the files of a run.
"""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fewstep import __version__
from fewstep.cli import console
from fewstep.formatting import listing, one_line, printable, quantity
from fewstep.ranges import Pixels

if TYPE_CHECKING:
    from fewstep.data import ImageSet

EXTRAS = {
    "studio": ("streamlit",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "trackers": ("tensorboard", "wandb", "trackio"),
    "hub": ("huggingface_hub", "transformers"),
    "s3": ("s3fs",),
    "text": ("wordllama", "transformers"),
}
UNEQUAL = 20
"""Ratio of the numbers of images of two classes above which a problem is reported."""


@dataclass(frozen=True)
class Options:
    """List the device, threads, data sets, extractor weights and extras of this machine; or read
    one data set, and print what it contains and what is wrong with it; or check every file of a
    run, or a weights file. Exits with 2 if one is damaged."""

    address: Annotated[
        str | None,
        tyro.conf.Positional,
        console.data_option(
            "A run folder or weights file to check, or a data set to describe", metavar="RUN|DATA"
        ),
    ] = None
    split: str = "train"
    """The part of DATA to read: train or test; celeba and folders may also have valid."""
    size: Pixels | None = None
    """Side length in pixels to which the images of DATA are resized; by default that of the set."""


def main(argv: Sequence[str]) -> int:
    """Run `fewstep doctor`. Returns the exit code."""
    options = console.options(Options, "doctor", argv)
    code = 0
    for name, status in _lines(options):
        print(f"{name:<17} {one_line(status)}", flush=True)
        code = 2 if name == "damaged" else code
    return code


def _lines(options: Options) -> Iterator[tuple[str, str]]:
    if options.address is None:
        return report()
    from fewstep.cli.doctor_run import describe_run, find_weights

    weights = find_weights(options.address)
    if weights is not None:
        return describe_run(weights)
    return describe(options.address, options.split, options.size)


def describe(address: str, split: str, size: int | None) -> Iterator[tuple[str, str]]:
    """Lines about a data set, as (name, text).  Raises: InputError if it cannot be read."""
    from fewstep import data

    name, path = data.split_path(address)
    images = data.load(name, split=split, size=size, path=path)
    place = "" if path is None else f", of {printable(str(path))}"
    yield "set", f"{images.name}, {split}{place}"
    yield "images", f"{len(images):,}"
    yield "shape", " x ".join(map(str, images.shape)) + " (channels, height, width)"
    yield "classes", _classes(images)
    if images.captions:
        yield "captions", _captions(images)
    for column in images.columns:
        yield "column", column
    if images.files:
        yield from images.files.lines()
    yield "fingerprint", images.fingerprint
    problems = [*_problems(images)]
    for problem in problems:
        yield "problem", problem
    if not problems:
        yield "problems", "none"


def _classes(images: "ImageSet") -> str:
    """Number and names of the classes, each with its number of images."""
    if images.labels is None:
        return "none: the images have no labels"
    counts = images.labels.bincount(minlength=images.classes).tolist()
    names = images.class_names or [str(label) for label in range(images.classes)]
    texts = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)]
    return f"{images.classes}: {listing(texts, limit=100)}"


def _captions(images: "ImageSet") -> str:
    """Number of images with captions, and of captions."""
    captions = [caption for own in images.captions for caption in own]
    count = sum(map(bool, images.captions))
    return (
        f"{quantity(len(captions), 'caption')}, {len(set(captions)):,} different, of {count:,} of "
        f"{quantity(len(images), 'image')}"
    )


def _problems(images: "ImageSet") -> Iterator[str]:
    """What is wrong with a set that can be read, one line each."""
    if images.labels is not None:
        counts = images.labels.bincount(minlength=images.classes).tolist()
        names = images.class_names or [str(label) for label in range(images.classes)]
        yield from _class_problems(dict(zip(names, counts, strict=True)))
    digests = [blake2b(image.tobytes()).digest() for image in images.images.numpy()]
    copies = len(images) - len(set(digests))
    if copies:
        yield f"{quantity(copies, 'image')} too many: exact copies of others"
    if copies and images.labels is not None:
        labelled = set(zip(digests, images.labels.tolist(), strict=True))
        conflicts = len(labelled) - len(set(digests))
        if conflicts:
            yield f"{quantity(conflicts, 'image')} with two labels: exact copies in another class"


def _class_problems(counts: Mapping[str, int]) -> Iterator[str]:
    """What is wrong with the number of images of each class."""
    empty = [name for name, count in counts.items() if not count]
    if empty:
        yield f"no image has the class {listing(empty)}: remove it, or add images"
    elif len(counts) == 1:
        yield "there is only one class: train with data.labels=false"
    single = [name for name, count in counts.items() if count == 1]
    if single and max(counts.values()) > 1:
        yield f"only one image has the class {listing(single)}: add images, or merge classes"
    elif len(single) > 1:
        yield "each image has a class of its own: are the labels names of files?"
    rarest = min((name for name in counts if counts[name] > 1), key=counts.__getitem__, default="")
    commonest = max(counts, key=counts.__getitem__)
    if rarest and counts[commonest] > UNEQUAL * counts[rarest]:
        yield (
            f"the classes are very unequal: {commonest} has {counts[commonest]:,} images, {rarest} "
            f"has {counts[rarest]:,}; rare classes are learned badly"
        )


def report() -> Iterator[tuple[str, str]]:
    """Lines of the report, as (name, status)."""
    import torch

    from fewstep.data.published import find_published
    from fewstep.distributed import device, hardware
    from fewstep.download import home
    from fewstep.metrics.extractors import weights

    yield "fewstep", __version__
    yield "python", f"{platform.python_version()} on {platform.machine()}"
    yield "torch", torch.__version__
    yield "device", hardware(device())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "threads", f"{torch.get_num_threads()} of {cores} cores"
    yield "home", f"{home()} ($FEWSTEP_HOME), {_free(home())} free"
    yield "digits", "with scikit-learn"
    yield "emoji", "with fewstep"
    for name in ("mnist", "fashion-mnist", "cifar10"):
        published = find_published(name)
        assert published
        files = {file for split in published.files.values() for file in split}
        missing = [file.name for split in published.files for file in published.missing(split)]
        if missing and len(missing) < len(files):
            count = f"{len(missing)} of {len(files)} files ({listing(missing)})"
            yield name, f"{count} {_missing('data')}"
        else:
            yield name, _missing("data") if missing else "present"
    published = find_published("celeba")
    assert published
    missing = [file.name for file in published.missing("train")]
    yield (
        "celeba",
        f"{listing(missing)} missing in {published.folder}; download by hand, or name another "
        "folder by celeba:PATH"
        if missing
        else "present",
    )
    for name in weights.PUBLISHED:
        path = weights.find_weights(name)
        yield name, path.name if path else _missing("weights")
    for extra, modules in EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        yield f"[{extra}]", f"pip install 'fewstep[{extra}]'" if missing else "installed"
    if find_spec("torchvision"):
        yield (
            "torchvision",
            "installed but not needed; a version that does not match torch breaks diffusers",
        )


def _missing(kind: str) -> str:
    from fewstep.download import home

    return f"missing; downloaded to {home()}/{kind} at its first use"


def _free(path: Path) -> str:
    while not path.exists():
        path = path.parent
    return f"{shutil.disk_usage(path).free / 2**30:.1f} GiB"
