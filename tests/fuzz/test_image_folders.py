"""Mutated folders of images: read in full and as they are, or refused in one line."""

import csv
import io
import json
import os
import random
import shutil
import struct
import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fewstep.data.folder.layout import SPLITS, split_of
from fewstep.errors import InputError
from image_folders import by_name, count_files, picture, read
from mutating import count_accepted, time_limit

SEED = 20_19
ODD_NAMES = (
    *("train", "test", "val", "Valid", "dev", "00000", "00001", "0", "10", "01", "-1", "１", "é"),
    *("e\u0301", "\udce9", "a\nb", " ", "a ", "A", "a", ".h", "__MACOSX", "x,y", 'x"y', "x;y", "#"),
    *("metadata.csv", "dataset.json", "README", "nul", "\u202e", "🐶", "x" * 200, "-o", "~", "$x"),
)
ODD_SUFFIXES = (
    ".PNG",
    ".jpg",
    ".jfif",
    ".tga",
    ".txt",
    ".heic",
    "",
    ".gif",
    ".svg",
    ".npy",
    ".png ",
)
ODD_LABELS = (
    *(
        "0",
        "1",
        "2",
        "0.0",
        "1.0",
        "00",
        " 1",
        "1e0",
        "+1",
        "１",
        "-1",
        "1.5",
        "nan",
        "NaN",
        "None",
    ),
    *("", " ", "cat", "Cat", "cat ", "dog", "True", "inf", "9" * 30, "1e99999", "\udce9", "é", "²"),
    *("e\u0301", "null", "\u00a0", "a\tb", "[1]", '"', "'", "1_0", "0x1", "1/2", "99999999999"),
)
ODD_FILES = (
    *(
        "0.png",
        "./0.png",
        "../0.png",
        "/etc/passwd",
        "a/../0.png",
        "A.PNG",
        "",
        " 0.png",
        "nothing",
    ),
    *(
        "train/0.png",
        "C:\\0.png",
        ".\\0.png",
        ".",
        "metadata.csv",
        "x" * 300,
        "\0",
        "a//0.png",
        "~",
    ),
)
COLUMNS = "file_name filename image path label Label class category text split id , split".split(
    " "
)


class Folder:
    """A folder that a series of random mutations changes."""

    def __init__(self, path, rng):
        self.path, self.rng, self.log = path, rng, []
        path.mkdir()

    def entries(self):
        """Everything inside, without following links."""
        found = []
        for top, folders, files in os.walk(self.path):
            found += [Path(top, name) for name in (*folders, *files)]
        return found

    def pick(self, *kinds):
        """A random entry of one of the kinds: file, folder, table.  Raises: LookupError if none."""
        checks = {
            "file": lambda p: p.is_file() and not p.is_symlink(),
            "folder": lambda p: p.is_dir() and not p.is_symlink(),
            "table": lambda p: p.is_file() and p.name.lower() in TABLES,
        }
        choices = [p for p in sorted(self.entries()) if any(checks[k](p) for k in kinds)]
        return self.rng.choice(choices)

    def any_folder(self):
        folders = [p for p in sorted(self.entries()) if p.is_dir() and not p.is_symlink()]
        return self.rng.choice([self.path, *folders])

    def mutate(self):
        name = self.rng.choice([*MUTATIONS])
        try:
            self.log.append(f"{name}: {MUTATIONS[name](self)!r}")
        except (OSError, ValueError, LookupError) as error:  # the system refuses it
            self.log.append(f"{name} failed: {error!r}")


TABLES = {"metadata.csv", "metadata.jsonl", "dataset.json"}


def flat(f):
    for i in range(f.rng.randint(1, 5)):
        (f.path / f"{i}.png").write_bytes(picture(f"{i}"))


def classes(f, names=("cat", "dog", "ant")):
    for name in names:
        (f.path / name).mkdir(parents=True)
        for i in range(f.rng.randint(1, 3)):
            (f.path / name / f"{i}.png").write_bytes(picture(f"{name}{i}"))


def splits(f):
    classes(f, [f"{split}/{name}" for split in ("train", "val", "test") for name in ("cat", "dog")])


def shards(f):
    for i in range(4):
        (f.path / f"0000{i // 2}").mkdir(exist_ok=True)
        (f.path / f"0000{i // 2}" / f"img0000000{i}.png").write_bytes(picture(f"{i}"))
    labels = [[f"0000{i // 2}/img0000000{i}.png", i % 2] for i in range(4)]
    if f.rng.random() < 0.8:
        (f.path / "dataset.json").write_text(json.dumps({"labels": labels}))


def listed(f):
    flat(f)
    names = [p.name for p in sorted(f.path.iterdir())]
    labels = f.rng.choice([["cat", "dog"], ["0", "1"], ["0.0", "1.0"]])
    rows = [(name, labels[i % 2]) for i, name in enumerate(names)]
    if f.rng.random() < 0.5:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=f.rng.choice(",,,;\t"))
        writer.writerows([("file_name", "label"), *rows])
        (f.path / "metadata.csv").write_text(text.getvalue())
    else:
        lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
        (f.path / "metadata.jsonl").write_text("\n".join(lines))


BASES = (flat, classes, splits, shards, listed, listed)


def flip_bytes(f):
    path = f.pick("file")
    content = bytearray(path.read_bytes())
    for _ in range(f.rng.randint(1, 4) if content else 0):
        content[f.rng.randrange(len(content))] = f.rng.randrange(256)
    path.write_bytes(content)
    return path


def cut(f):
    path = f.pick("file")
    content = path.read_bytes()
    path.write_bytes(content[: f.rng.randint(0, len(content))])
    return path


def insert_bytes(f):
    path = f.pick("file")
    content = path.read_bytes()
    i = f.rng.randint(0, len(content))
    extra = f.rng.choice(
        [b"\0", b"\xe9", b"\n", b'"', b",", b"\xef\xbb\xbf", b"\r", f.rng.randbytes(9)]
    )
    path.write_bytes(content[:i] + extra + content[i:])
    return path, extra


def rename(f):
    path = f.pick("file", "folder")
    suffix = path.suffix if path.is_file() and f.rng.random() < 0.7 else ""
    return path.rename(path.with_name(f.rng.choice(ODD_NAMES) + suffix))


def change_suffix(f):
    path = f.pick("file")
    return path.rename(path.with_name(path.stem + f.rng.choice(ODD_SUFFIXES)))


def remove(f):
    path = f.pick("file", "folder")
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return path


def move(f):
    path = f.pick("file", "folder")
    return path.rename(f.any_folder() / path.name)


def wrap(f):
    inside = f.path.with_name("wrap")
    f.path.rename(inside)
    f.path.mkdir()
    return inside.rename(f.path / f.rng.choice(ODD_NAMES))


def link(f):
    target = f.rng.choice(
        [*f.entries(), f.path, Path("/dev/null"), Path("nothing"), Path("/dev/zero")]
    )
    path = f.any_folder() / (f.rng.choice(ODD_NAMES) + f.rng.choice(["", ".png"]))
    path.symlink_to(target)
    return path, target


def hard_link(f):
    target, path = f.pick("file"), f.any_folder() / f"{f.rng.choice(ODD_NAMES)}.png"
    os.link(target, path)
    return path, target


def pipe(f):
    path = f.any_folder() / (f.rng.choice(["x.png", "metadata.csv", "dataset.json", "x"]))
    os.mkfifo(path)
    return path


def add_file(f):
    names = ["notes.txt", "labels.csv", ".DS_Store", "README.md", "x.png", "metadata.csv", "a.jpe"]
    names += ["0.txt", "1.TXT", "metadata.jsonl", "dataset.json", "Thumbs.db"]
    path = f.any_folder() / f.rng.choice(names)
    if path.is_fifo():
        raise FileExistsError(path)  # to write would wait for a reader
    contents = [
        b"",
        b"a cat\n",
        b"file_name,label\n",
        picture("x"),
        picture("x", "JPEG"),
        f.rng.randbytes(64),
    ]
    path.write_bytes(f.rng.choice([*contents, b'{"labels": null}', b'{"labels": []}']))
    return path


def add_folder(f):
    path = f.any_folder() / f.rng.choice(ODD_NAMES)
    path.mkdir()
    if f.rng.random() < 0.7:
        (path / "9.png").write_bytes(picture("9"))
    return path


def odd_image(f):
    path = f.any_folder() / f"{f.rng.choice('abcdef')}.png"
    kind = f.rng.choice(["bomb", "deep", "frames", "size", "palette", "cmyk", "exif", "alpha"])
    image, options = Image.new("RGB", (2, 2), (9, 99, 199)), {}
    if kind == "bomb":
        content = bytearray(picture("bomb"))
        content[16:24] = struct.pack(">II", f.rng.choice([1, 2**31 - 1, 60_000]), 60_000)
        path.write_bytes(content)
        return path, kind
    if kind == "deep":
        image = Image.fromarray(np.full((2, 2), 40_000, np.uint16))
    elif kind == "frames":
        options = {"save_all": True, "append_images": [Image.new("RGB", (2, 2))]}
    elif kind == "size":
        image = Image.new("RGB", (f.rng.randint(1, 9), 3))
    elif kind == "palette":
        image = image.quantize(4)
        options = {"transparency": 0}
    elif kind == "cmyk":
        image, options = image.convert("CMYK"), {"format": "TIFF"}
    elif kind == "exif":
        exif = image.getexif()
        exif[0x0112] = f.rng.randint(0, 9)
        options = {"exif": exif, "format": "JPEG"}
    else:
        image.putalpha(f.rng.randrange(256))
    image.save(path, **options)
    return path, kind


def edit_table(f):
    """Change a line, a label, a name, a column, the separator or the encoding of a table."""
    path = f.pick("table")
    lines = path.read_text(errors="surrogateescape").split("\n")
    i = f.rng.randrange(len(lines))
    kind = f.rng.choice(
        "repeat drop swap label label label file file column separator encode join".split()
    )
    encoding = "utf-8"
    if kind == "repeat":
        lines.insert(f.rng.randrange(len(lines)), lines[i])
    elif kind == "drop":
        del lines[i]
    elif kind == "swap":
        f.rng.shuffle(lines)
    elif kind == "label":
        old = f.rng.choice(["cat", "dog", "1", "0"])
        lines[i] = lines[i].replace(old, f.rng.choice(ODD_LABELS))
    elif kind == "file":
        lines[i] = lines[i].replace(f"{f.rng.randrange(3)}.png", f.rng.choice(ODD_FILES))
    elif kind == "column":
        name = f.rng.choice(COLUMNS)
        lines = [f"{line},{name if k == 0 else 'train'}" for k, line in enumerate(lines)]
    elif kind == "separator":
        lines = [line.replace(",", f.rng.choice(";\t| :")) for line in lines]
    elif kind == "encode":
        encoding = f.rng.choice(["utf-16", "latin-1", "utf-8-sig", "utf-16-le"])
    else:
        lines = [f.rng.choice(["", "\r", "\0", " "]).join(lines)]
    path.write_bytes("\n".join(lines).encode(encoding, "surrogateescape"))
    return path, kind


MUTATIONS = {
    f.__name__: f
    for f in (flip_bytes, cut, insert_bytes, rename, change_suffix, remove, move, wrap, link)
}
MUTATIONS |= {f.__name__: f for f in (hard_link, pipe, add_file, add_folder, odd_image, edit_table)}
MUTATIONS |= {"edit_table_again": edit_table, "odd_image_again": odd_image, "rename_again": rename}


def pixels_of(path):
    with Image.open(path) as image:
        layer = ImageOps.exif_transpose(image).convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return np.asarray(Image.alpha_composite(white, layer).convert("RGB")).astype(int)


def check(folder, images, message, split, size):
    """Whatever was accepted is complete and true."""
    files = images.files
    assert files.total == count_files(folder), (files, message)
    assert files.images == len(images) > 0
    assert bool(message) == bool(files.left_out or files.notes)
    names = images.columns["file_name"]
    assert len(set(names)) == len(names)
    has_table = "label file" in files.extras
    if all(os.path.exists(folder / name) for name in names):  # else names have escapes
        paths = [folder / name for name in names]
        assert len({(p.stat().st_dev, p.stat().st_ino) for p in paths}) == len(paths)
        if size is None:
            for path, image in zip(paths, images.images, strict=True):
                difference = pixels_of(path) - image.permute(1, 2, 0).numpy()
                assert np.abs(difference).max() <= 1, path
    tops = {split_of(part) for name in names for part in name.split("/")[:-1]} - {None, split}
    assert has_table or not tops, "images of another split"
    for name, label in by_name(images).items():
        if label is not None and not has_table:
            assert label in name.split("/"), (name, label)
    if has_table and images.labels is not None:
        check_labels(folder, images)


def check_labels(folder, images):
    """The labels of a table in its usual form are those of the images."""
    tables = [p for p in folder.rglob("*") if p.name.lower() == "metadata.csv" and p.is_file()]
    if len(tables) != 1:
        return
    text = tables[0].read_bytes().decode("utf-8-sig", "replace")
    rows = [*csv.DictReader(io.StringIO(text, newline=""))]
    prefix = tables[0].parent.relative_to(folder)
    labels = {str(prefix / row["file_name"].strip()): row["label"].strip()
              for row in rows if row.get("file_name") and row.get("label")}  # fmt: skip
    for name, label in by_name(images).items():
        written = labels.get(name)
        if written is None or written == label:
            continue
        assert float(written) == float(label), (name, label, written)


def attempt(path, number):
    """Read mutated folder `number`. Returns whether it was accepted; explains a failure."""
    rng = random.Random(f"{SEED} {number}")
    folder = Folder(path, rng)
    base = rng.choice(BASES)
    base(folder)
    for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 5])):
        folder.mutate()
    split = rng.choice(["train", "train", "train", *SPLITS])
    size = rng.choice([None, None, 4])
    try:
        with time_limit():
            images, message = read(path, split=split, size=size)
            check(path, images, message, split, size)
        return True
    except InputError as error:
        assert "\n" not in str(error), (number, str(error))
        str(error).encode()
        return False
    except BaseException:
        steps = "\n".join([base.__name__, *folder.log])
        pytest.fail(
            f"folder {number}, split {split}, size {size}:\n{steps}\n{traceback.format_exc()}"
        )


def test_mutated_folders_are_read_in_full_or_refused(tmp_path):
    assert 10 < count_accepted(attempt, tmp_path, range(60)) < 50


@pytest.mark.slow
def test_2000_mutated_folders_are_read_in_full_or_refused(tmp_path):
    accepted = count_accepted(attempt, tmp_path, range(2000))
    print(f"{accepted} of 2000 folders accepted")
    assert 500 < accepted < 1700
