"""What is known of published data sets, and of their files, before they are downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fewstep.data import celeba, cifar10, mnist
from fewstep.data.imageset import ImageSet, check_split
from fewstep.download import home
from fewstep.errors import InputError

CELEBA_IMAGES = {"train": 162_770, "valid": 19_867, "test": 19_962}


@dataclass(frozen=True)
class PublishedSet:
    """A data set whose files are downloaded, or put into a folder by hand."""

    shape: tuple[int, int, int]
    """(channels, height, width) of the published images."""
    class_names: tuple[str, ...]
    images: Mapping[str, int]
    """Number of images of each split."""
    folder: Path
    files: Mapping[str, tuple[str, ...]]
    """Names of each split's files in the folder."""
    megabytes: int | None
    """Size of the download in 10⁶ bytes; None for a set that is downloaded by hand."""

    def missing(self, split: str) -> list[Path]:
        """The files of a split that are not on this machine."""
        paths = [self.folder / name for name in self.files[split]]
        return [path for path in paths if not path.exists()]


def find_published(name: str, path: str | Path | None = None) -> PublishedSet | None:
    """The published set called `name`; None for other sets. `path` is another folder of CelebA."""
    folder = home() / "data"
    if name in mnist.SOURCES:
        source = mnist.SOURCES[name]
        first, second, third, fourth = source.md5
        return PublishedSet(
            (1, 28, 28),
            source.class_names,
            {"train": 60_000, "test": 10_000},
            folder / name,
            {"train": (first, second), "test": (third, fourth)},
            source.megabytes,
        )
    if name in ("cifar10", "cifar10-captions"):
        images = {split: len(files) * cifar10.RECORDS for split, files in cifar10.FILES.items()}
        folder = folder / cifar10.FOLDER
        return PublishedSet(
            (3, 32, 32), cifar10.CLASS_NAMES, images, folder, cifar10.FILES, cifar10.MEGABYTES
        )
    if name == "celeba":
        files = dict.fromkeys(CELEBA_IMAGES, (celeba.IMAGES, celeba.PARTITION))
        folder = Path(path) if path else folder / name
        return PublishedSet((3, 218, 178), (), CELEBA_IMAGES, folder, files, None)
    return None


def blank_images(published: PublishedSet, name: str, split: str, size: int | None) -> ImageSet:
    """Black images in place of those of a published set, with as many rows and labels; and with
    names of classes as captions, if it has captions.

    Raises: InputError for an unknown split, or CelebA without `size`.
    """
    check_split(name, split, published.images)
    channels, height, width = published.shape
    if size is None and height != width:
        raise InputError(f"{name} needs data.size, such as 32 or 64")
    count, classes = published.images[split], len(published.class_names)
    pixels = torch.zeros(1, channels, size or height, size or width, dtype=torch.uint8)
    labels = torch.arange(count) % classes if classes else None
    images = ImageSet(name, pixels.expand(count, -1, -1, -1), labels, published.class_names)
    if name != "cifar10-captions":
        return images
    captions = [(class_name,) for class_name in published.class_names]
    return replace(images, captions=tuple(captions[row % classes] for row in range(count)))
