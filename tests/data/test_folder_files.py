"""Every file in a folder of images is accounted for: in the set, expected beside it, left out."""

import gzip
import json
import os
import socket
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli import main
from fewstep.data import load, mnist
from fewstep.data.account import FileAccount
from fewstep.data.folder import files as folder_files
from fewstep.data.folder.files import image_formats
from fewstep.errors import InputError
from fewstep.formatting import printable
from fewstep.recipe import parse
from fewstep.runner import run_recipe
from image_folders import build, by_name, picture, read, refusal

SAVED = {"JPEG": "jpe jfif JPG Jpeg", "PPM": "ppm pnm PBM", "WEBP": "WebP", "TGA": "tga icb"}
SAVED |= {"AVIF": "avif", "JPEG2000": "jp2 j2k", "GIF": "gif", "QOI": "qoi", "ICO": "ico"}
SAVED |= {"PCX": "pcx", "SGI": "rgb sgi", "DDS": "dds", "TIFF": "TIF tiff", "BMP": "dib bmp"}


def test_every_suffix_that_pillow_decodes_is_read(tmp_path):
    written = [(form, suffix) for form, names in SAVED.items() for suffix in names.split()]
    written = [pair for pair in written if f".{pair[1].lower()}" in image_formats()]
    for form, suffix in written:
        image = Image.new("1" if suffix == "PBM" else "RGB", (16, 16))
        path = tmp_path / f"{form}-{suffix}.{suffix}"
        image.save(path, "DIB" if suffix == "dib" else form)
    images, message = read(tmp_path)
    assert len(images) == len(written) and not message
    assert images.files == FileAccount(len(written))


def test_formats_that_need_other_programs_are_not_opened(tmp_path):
    assert not {".eps", ".ps", ".wmf", ".mpg", ".h5", ".pdf"} & image_formats().keys()
    build(tmp_path, "a.png", b__png=b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n")
    assert "b.png is not a readable image (its content is no image" in refusal(tmp_path)


def test_content_counts_rather_than_the_suffix(tmp_path):
    for form, name in {"PNG": "a.jpg", "JPEG": "b.png", "WEBP": "c.gif", "GIF": "d.tga"}.items():
        (tmp_path / name).write_bytes(picture("x", form))
    assert len(read(tmp_path)[0]) == 4


LEFT_OUT = {
    "notes.txt": ("with the suffix .txt", b""),
    "deep/er/a.heic": ("with the suffix .heic", b""),
    "film.MP4": ("with the suffix .mp4", b""),
    "picture": ("without a suffix", picture("x")),
    "x.png.part": ("with the suffix .part", b""),
    "caf\udce9.dat": ("with the suffix .dat", b""),
    "a\nb.\n": ("with the suffix .\\n", b""),
    "labels.csv": ("with the suffix .csv", b"file,label\n"),
}


@pytest.mark.parametrize("name", LEFT_OUT, ids=printable)
def test_what_is_left_out_is_said_in_one_line(tmp_path, name):
    reason, content = LEFT_OUT[name]
    build(tmp_path, "a.png", "b.png", **{name.replace(".", "__"): content})
    images, message = read(tmp_path)
    assert len(images) == 2
    assert f"1 of 3 files is left out: 1 {reason} ({printable(name)})" in message
    assert images.files.left_out == {reason: (name,)}
    assert images.files.total == 3


def test_files_that_belong_beside_images_are_counted_without_a_warning(tmp_path):
    names = "LICENSE README.md readme.txt Citation.cff .DS_Store Thumbs.db desktop.ini".split()
    build(tmp_path, "a/0.png", "b/0.png", "__MACOSX/a/._0.png", ".git/x.png", "b/.hidden.png")
    build(tmp_path, **{name.replace(".", "__"): b"" for name in names})
    images, message = read(tmp_path)
    assert not message and len(images) == 2
    extras = {"hidden": 3, "readme or licence": 4, "of the operating system": 3}
    assert images.files.extras == extras and images.files.total == 12


def test_links_are_followed_and_cycles_are_not(tmp_path):
    build(tmp_path / "elsewhere", "dogs/0.png", "dogs/1.png", "cow.png")
    build(tmp_path / "set", "cat/0.png", "cow/x.txt")
    links = {"dog": "../elsewhere/dogs", "cow/a.png": "../../elsewhere/cow.png"}
    links |= {"cat/loop": "..", "dogs": "../elsewhere/dogs/2.png", "cat/self": "self"}
    links |= {"cat/broken.png": "nothing.png", "root": "/", "cow/up": "../.."}
    for name, target in links.items():
        (tmp_path / "set" / name).symlink_to(target)
    images, message = read(tmp_path / "set")
    assert by_name(images) == {
        "cat/0.png": "cat", "cow/a.png": "cow", "dog/0.png": "dog", "dog/1.png": "dog",
    }  # fmt: skip
    assert "7 of 11 files are left out" in message
    assert "3 behind a broken link (cat/broken.png, cat/self, dogs)" in message
    assert "3 linked to a folder above (cat/loop, cow/up, root)" in message
    assert "1 with the suffix .txt (cow/x.txt)" in message


def test_links_that_multiply_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_files, "MAX_REPEATS", 50)
    build(tmp_path / "set", "a.png")
    for level in range(12):
        folder = tmp_path / f"{level}"
        folder.mkdir()
        for name in ("left", "right"):
            (folder / name).symlink_to(tmp_path / f"{level + 1}")
    build(tmp_path / "12", "a.png")
    (tmp_path / "set" / "trees").symlink_to(tmp_path / "0")
    assert "lead to the same folders more than 50 times" in refusal(tmp_path / "set")


def test_a_file_found_twice_is_read_once(tmp_path):
    build(tmp_path, "a/0.png", "a/2.png", "b/3.png")
    (tmp_path / "a" / "1.png").symlink_to("0.png")
    os.link(tmp_path / "a" / "0.png", tmp_path / "a" / "4.png")
    images, message = read(tmp_path)
    assert [*by_name(images)] == ["a/0.png", "a/2.png", "b/3.png"]
    assert "2 twice in the folder (the same file by another name) (a/1.png, a/4.png)" in message


@pytest.mark.parametrize("link", ["folder", "file", "hard"])
def test_a_file_in_two_classes_is_refused(tmp_path, link):
    build(tmp_path, "cat/0.png", "dog/1.png")
    if link == "folder":
        (tmp_path / "hound").symlink_to("dog")
    elif link == "file":
        (tmp_path / "cat" / "1.png").symlink_to("../dog/1.png")
    else:
        os.link(tmp_path / "dog" / "1.png", tmp_path / "cat" / "1.png")
    assert "dog/1.png" in refusal(tmp_path) and "one file in two classes" in refusal(tmp_path)


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link to a fifo"])
def test_pipes_sockets_and_devices_are_not_opened(tmp_path, kind, monkeypatch):
    build(tmp_path / "set", "a.png")
    monkeypatch.chdir(tmp_path / "set")  # paths of sockets have at most 107 bytes
    if kind == "fifo":
        os.mkfifo("b.png")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("b.png")
    elif kind == "device":
        os.symlink("/dev/zero", "b.png")
    else:
        os.mkfifo("../fifo")
        os.symlink("../fifo", "b.png")
    images, message = read(tmp_path / "set")
    assert len(images) == 1 and images.files.total == 2
    assert "1 of a special kind (pipe, socket or device) (b.png)" in message
    (tmp_path / "set" / "metadata.csv").write_text("file_name\nb.png\n")
    assert "line 2: b.png is of a special kind" in refusal(tmp_path / "set")


def test_a_folder_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    build(tmp_path, "a/0.png", "b/0.png")
    scan = os.scandir

    def guarded(path):
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert f"{tmp_path}/b cannot be read (Permission denied)" in refusal(tmp_path)


def test_an_empty_class_folder_is_said(tmp_path):
    build(tmp_path, "a/0.png", "b/0.png")
    (tmp_path / "c").mkdir()
    assert "1 without any file in it (c)" in read(tmp_path)[1]


def png_of(width, height, content=b""):
    """A PNG file that claims a size, and holds a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name, data):
        crc = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)

    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(content)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("width", "height"),
    [(20_000, 20_000), (2**27 + 1, 1), (1, 2**31 - 1), (12_000, 12_000), (10**6, 10**6)],
)
@pytest.mark.parametrize("size", [None, 8])
def test_huge_images_are_refused_by_the_size_that_they_claim(tmp_path, width, height, size):
    (tmp_path / "a.png").write_bytes(png_of(width, height))
    message = refusal(tmp_path, size=size)
    assert "a.png is not a readable image" in message and "more than 134,217,728" in message


def test_other_formats_of_huge_images_are_refused(tmp_path):
    gif = bytearray(picture("x", "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    bmp = bytearray(picture("x", "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    contents = {"a.gif": gif, "b.bmp": bmp, "c.ppm": b"P6 99999 99999 255\n"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path, size=4)
    assert message.startswith("3 of 3 images cannot be read")
    assert message.count("more than 134,217,728 pixels") == 3


def test_all_broken_files_are_counted_at_once(tmp_path):
    build(tmp_path, *(f"{i}.png" for i in range(9)), "empty.jpg", "text.webp", "cut.png")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.webp").write_text("<html>not found</html>")
    (tmp_path / "cut.png").write_bytes(picture("cut.png")[:-30])
    (tmp_path / "0.png").write_bytes(b"GIF89a")
    message = refusal(tmp_path)
    assert message.startswith("4 of 12 images cannot be read: ")
    assert "0.png (" in message and "cut.png (" in message and ", ...;" in message


def test_images_of_other_sizes_are_named_at_once(tmp_path):
    build(tmp_path, *"abcd")
    for name, size in {"a": (2, 2), "b": (3, 2), "c": (2, 2), "d": (1, 9)}.items():
        (tmp_path / name).unlink()
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    expected = "b.png has 3 x 2 pixels, d.png has 1 x 9 pixels, but a.png has 2 x 2"
    assert expected in refusal(tmp_path)
    assert read(tmp_path, size=2)[0].shape == (3, 2, 2)


def test_of_several_frames_the_first_is_read(tmp_path):
    frames = [Image.new("RGB", (2, 2), (60 * i, 0, 0)) for i in range(4)]
    for name in ("a.gif", "b.png", "c.webp", "d.tif", "e.avif"):
        options = {"lossless": True} if name == "c.webp" else {}
        frames[2].save(tmp_path / name, save_all=True, append_images=frames, **options)
    build(tmp_path, "z.png")
    images, message = read(tmp_path)
    assert "Only the first frame is read of 5 images with several (a.gif, b.png, c.webp" in message
    assert (images.images[:5, 0].int() - 120).abs().max() <= 2
    assert images.files.total == 6 and not images.files.left_out


def test_a_folder_of_no_images_says_what_is_there(tmp_path):
    build(tmp_path, a__txt="", b__heic="", picture="")
    message = refusal(tmp_path)
    assert "holds no images, such as .png files: 3 of 3 files are left out" in message
    assert "1 with the suffix .heic (b.heic)" in message
    (tmp_path / "empty").mkdir()
    assert "it is empty" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / ".a.png").touch()
    assert "1 file: 0 in the set, 1 hidden" in refusal(tmp_path / "empty")
    assert "is a file" in refusal(tmp_path / "a.txt")


def test_the_account_is_printed_and_logged(tmp_path, capsys):
    build(tmp_path / "set", "train/a/0.png", "train/b/1.png", "test/a/0.png", "README", n__txt="")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["doctor", f"folder:{tmp_path / 'set'}"]) == 0
    output = capsys.readouterr()
    assert "1 of 5 files is left out: 1 with the suffix .txt (n.txt)" in output.err
    lines = output.out.splitlines()
    expected = "5: 2 in the set, 1 readme or licence, 1 of the split test, 1 left out"
    assert f"files             {expected}" in lines
    assert "left out          1 with the suffix .txt (n.txt)" in lines
    summary = read(tmp_path / "set")[0].files.summary()
    assert summary == f"5 files: {expected.partition(': ')[2]} (1 with the suffix .txt)"


def test_memory_that_is_missing_is_said(tmp_path, monkeypatch):
    build(tmp_path, "a.png", "b.png")

    def allocate(*_):
        raise MemoryError

    monkeypatch.setattr(np, "empty", allocate)
    message = refusal(tmp_path)
    assert "2 images of 2 x 2 pixels need 0 GB of memory; set size" in message


def test_pixels_do_not_depend_on_threads(tmp_path, monkeypatch):
    build(tmp_path, *(f"{i:02}.png" for i in range(40)))
    first = read(tmp_path)[0].images
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert torch.equal(first, read(tmp_path)[0].images)


def test_the_training_log_has_the_account(tmp_path):
    set_ = build(tmp_path / "set", *(f"a/{i}.png" for i in range(4)), "b/4.png", n__txt="")
    backbone = {"name": "mlp", "width": 4, "depth": 1}
    student = {"init": "scratch", "process": {"name": "flow"}, "backbone": backbone}
    table = {
        "data": {"name": "folder", "path": str(set_)},
        "student": student | {"parametrization": {"name": "velocity"}},
        "method": {"name": "denoise"},
        "fit": {"steps": 1, "batch": 2, "warmup": 0, "ema_halflife": 1},
    }
    with pytest.warns(UserWarning, match="n.txt"):
        for _ in run_recipe(parse(table), tmp_path / "run"):
            pass
    line = json.loads((tmp_path / "run" / "progress.jsonl").read_text().splitlines()[0])
    assert line["data"] == "6 files: 5 in the set, 1 left out (1 with the suffix .txt)"


@pytest.mark.parametrize("name", ["img_align_celeba/000001.jpg", "list_eval_partition.txt"])
def test_pipes_among_the_files_of_celeba_are_refused(tmp_path, name):
    build(tmp_path, "img_align_celeba/000001.jpg", list_eval_partition__txt="000001.jpg 0\n")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=f"{name} is .*a named pipe"):
        load("celeba", path=tmp_path, size=8)


def test_pipes_and_files_that_unpack_to_gigabytes_are_refused_as_mnist(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.gz")
    with pytest.raises(InputError, match="pipe.gz is a named pipe"):
        mnist.read_idx(tmp_path / "pipe.gz", dimensions=1)
    monkeypatch.setattr(mnist, "MAX_BYTES", 1000)
    header = bytes([0, 0, 8, 1]) + (100_000).to_bytes(4, "big")
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(header + bytes(100_000)))
    with pytest.raises(InputError, match="declares 100000 values, but it has 992"):
        mnist.read_idx(tmp_path / "bomb.gz", dimensions=1)
