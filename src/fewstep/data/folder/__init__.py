"""A user's own images: a folder per class, a label file, one flat folder, or splits of these.

docs/data.md has a table of the folders that are understood.
"""

import warnings
from dataclasses import replace
from pathlib import Path

import torch

from fewstep.data.account import FileAccount, as_text, name_list
from fewstep.data.folder.accounting import account_for
from fewstep.data.folder.captions import add_captions
from fewstep.data.folder.decoding import decode_all
from fewstep.data.folder.files import find_files
from fewstep.data.folder.layout import SPLITS, find_place, split_of
from fewstep.data.folder.listing import select_listed
from fewstep.data.folder.selection import Selection, select_by_folder
from fewstep.data.imageset import ImageSet, check_split
from fewstep.errors import InputError
from fewstep.formatting import printable, quantity
from fewstep.paths import check_kind


def read_folder(
    split: str = "train", *, size: int | None = None, path: Path | None = None
) -> ImageSet:
    """Read the images of the folder `path` as RGB, sorted by relative name.

    - With a `metadata.csv`, `metadata.jsonl` or `dataset.json`, it lists the images and their
      labels: class names, or numbers from 0. Its column `text` or `caption` has their captions;
      other columns become text columns of the set.
    - Without one, each sub-folder is a class; or all images are in one folder, without labels.
    - A .txt file beside an image of the same name has its captions, one a line.
    - If folders are named train, valid and test, `split` selects one of them.

    Transparent images get a white background. Class names are sorted as numbers if all are
    integers, else as text. With `size`, images are resized with `resize_to_square`; without it, all
    images must have the same size. A warning counts the files that are left out; `ImageSet.files`
    accounts for all of them.

    Raises: InputError if there are no images, one is damaged, they do not fit the label file, or
    the folder could mean two things.
    """
    if path is None:
        raise InputError(
            "folder needs a path: write folder:PATH on the command line, or set data.path in a "
            "recipe, to the folder of the images"
        )
    folder = path
    text = printable(str(folder))
    if folder.is_file():
        raise InputError(
            f"{text} is a file; set path to a folder of images, for an archive the unpacked one"
        )
    if not folder.is_dir():
        raise InputError(f"the folder {text} does not exist; set path to the folder of the images")
    check_kind(folder, "images")
    selection, account = _select(folder, split)
    paths = [folder.joinpath(*file.parts) for file in selection.files]
    images, several = decode_all(paths, size)
    names = tuple(as_text(file.name) for file in selection.files)
    if several:
        note = f"Only the first frame is read of {quantity(len(several), 'image')} with several"
        note += f" ({name_list([names[number] for number in several])})"
        account = replace(account, notes=(*account.notes, note))
    if message := account.warning():
        warnings.warn(f"{text}: {message}", stacklevel=2)
    return ImageSet(
        printable(folder.resolve().name) or text,
        images,
        None if selection.labels is None else torch.tensor(selection.labels),
        selection.class_names,
        {"file_name": names, **selection.columns},
        account,
        tuple(selection.captions or ()),
    )


def _select(folder: Path, split: str) -> tuple[Selection, FileAccount]:
    """The images of a split, and the account of all files.

    Raises: InputError if there are no images.
    """
    canonical = split_of(split)
    if canonical is None:
        check_split("folder", split, SPLITS)
    assert canonical
    all_files = find_files(folder)
    place = find_place(folder, all_files, canonical)
    path = folder.joinpath(*place.parts)
    if place.label_file:
        selection = select_listed(place, path, place.label_file, canonical)
    else:
        if not place.has_splits:
            check_split("folder", canonical, ["train"])
        selection = select_by_folder(place, path)
    table = place.label_file.parts[-1] if place.label_file else None
    selection, caption_files = add_captions(selection, folder, place.files, table)
    account = account_for(folder, all_files, place, selection, caption_files)
    if not selection.files:
        other = account.warning() or (account.summary() if account.total else "it is empty")
        raise InputError(f"{printable(str(folder))} holds no images, such as .png files: {other}")
    return selection, account
