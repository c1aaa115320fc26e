import csv

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data import load
from fewstep.download import home
from fewstep.errors import InputError

EMOJI = home() / "data" / "noto-emoji-32"


def save(path, colour=(1, 2, 3), *, mode="RGB", size=(4, 4), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


def table(folder, text):
    (folder / "metadata.csv").write_text(text)


def colours(images):
    return [tuple(image[:, 0, 0].tolist()) for image in images]


def refusal(folder, **options):
    with pytest.raises(InputError) as told:
        load("folder", path=folder, **options)
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_flat_folder_is_unlabelled_and_sorted(tmp_path):
    for i in [2, 0, 1]:
        save(tmp_path / f"{i}.png", (i, i, i))
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path / ".hidden.png")
    with pytest.warns(UserWarning, match=r"1 of 5 files is left out: 1 with the suffix .txt"):
        images = load("folder", path=str(tmp_path))
    assert images.name == tmp_path.name
    assert images.labels is None
    assert images.shape == (3, 4, 4)
    assert images.columns == {"file_name": ("0.png", "1.png", "2.png")}
    assert colours(images.images) == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]


def test_pixels_are_those_of_the_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = load("folder", path=tmp_path).images
    assert torch.equal(images[0], torch.from_numpy(pixels).permute(2, 0, 1))


def test_sub_folders_are_classes(tmp_path):
    save(tmp_path / "dog" / "b.PNG", (1, 0, 0))
    save(tmp_path / "dog" / "deeper" / "a.png", (2, 0, 0))
    save(tmp_path / "cat" / "z.jpg", (0, 0, 0))
    save(tmp_path / ".cache" / "x.png")
    images = load("folder", path=tmp_path)
    assert images.class_names == ("cat", "dog")
    assert images.columns["file_name"] == ("cat/z.jpg", "dog/b.PNG", "dog/deeper/a.png")
    assert images.labels.tolist() == [0, 1, 1]


def test_numbered_sub_folders_count_rather_than_spell(tmp_path):
    for i in [1, 2, 10]:
        save(tmp_path / str(i) / "a.png", (i, 0, 0))
    images = load("folder", path=tmp_path)
    assert images.class_names == ("1", "2", "10")
    assert [images.class_names[label] for label in images.labels] == ["1", "10", "2"]
    assert images.images[:, 0, 0, 0].tolist() == [1, 10, 2]


def test_images_beside_class_folders_are_refused(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "cat" / "b.png")
    assert "a.png" in refusal(tmp_path)


def test_a_table_gives_labels_and_columns_in_the_order_of_names(tmp_path):
    for i, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        save(tmp_path / name, (i, i, i))
    save(tmp_path / "unlisted.png", (9, 9, 9))
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "file_name", "label", "year"])
        writer.writerow(['a "quoted", café', "sub/c.png", "dog", "1999"])
        writer.writerow(["", "a.png", "cat", ""])
        writer.writerow(["second", "b.png", "dog", "2001"])
    with pytest.warns(UserWarning, match=r"1 not listed in metadata.csv \(unlisted.png\)") as note:
        images = load("folder", path=tmp_path)
    assert images.columns == {
        "file_name": ("a.png", "b.png", "sub/c.png"),
        "year": ("", "2001", "1999"),
    }
    assert "1 of 3 images has no caption (a.png)" in str(note[0].message)
    assert images.captions == ((), ("second",), ('a "quoted", café',))
    assert images.class_names == ("cat", "dog")
    assert images.labels.tolist() == [0, 1, 1]
    assert colours(images.images) == [(0, 0, 0), (1, 1, 1), (2, 2, 2)]


def test_integer_labels_are_class_numbers(tmp_path):
    names = [f"{i:02}.png" for i in range(12)]
    for name in names:
        save(tmp_path / name)
    rows = [f"{name},{11 - i}" for i, name in enumerate(names)]
    table(tmp_path, "\n".join(["file_name,label", *rows]))
    images = load("folder", path=tmp_path)
    assert images.labels.tolist() == list(range(11, -1, -1))
    assert images.class_names[10] == "10"


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("1", "2"), "from 1 to 2, but no image has label 0"),
        (("0", "2"), "no image has label 1"),
        (("-1", "0"), "from -1 to 0"),
        (("", "cat"), "a label is empty"),
    ],
)
def test_labels_that_cannot_be_numbers_of_classes_are_refused(tmp_path, labels, told):
    for name in "ab":
        save(tmp_path / f"{name}.png")
    table(tmp_path, f"file_name,label\na.png,{labels[0]}\nb.png,{labels[1]}\n")
    assert told in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name,text\na.png,x\n", "no column file_name"),
        ("", "no column file_name"),
        ("file_name,text\na.png\n", "line 2, does not have one value per column: 1 "),
        ("file_name,text\na.png,x,y\n", "line 2, does not have one value per column: 3 "),
        ('file_name,text\na.png,"x\n', "line 2, is not a line of CSV"),
        ("file_name\n", "holds no images"),
        ("file_name\na.png\nb.png\n", "b.png is missing"),
    ],
)
def test_a_table_that_does_not_fit_is_explained(tmp_path, text, told):
    save(tmp_path / "a.png")
    table(tmp_path, text)
    assert told in refusal(tmp_path)


def test_a_table_in_another_encoding_is_explained(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("file_name,text\na.png,café\n".encode("latin-1"))
    assert "UTF-8" in refusal(tmp_path)


@pytest.mark.parametrize("alpha", [0, 1, 100, 128, 254, 255])
def test_transparency_shows_white_behind(tmp_path, alpha):
    save(tmp_path / "a.png", (10, 200, 255, alpha), mode="RGBA")
    expected = tuple(int((c * alpha + 255 * (255 - alpha)) / 255 + 0.5) for c in (10, 200, 255))
    assert colours(load("folder", path=tmp_path).images) == [expected]


def test_every_mode_becomes_three_channels(tmp_path):
    save(tmp_path / "a.png", 77, mode="L")
    save(tmp_path / "b.png", (77, 0), mode="LA")
    save(tmp_path / "c.png", 1, mode="1")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "d.png")
    palette.save(tmp_path / "e.png", transparency=1)
    save(tmp_path / "f.tif", (0, 255, 255, 0), mode="CMYK")
    assert colours(load("folder", path=tmp_path).images) == [
        (77, 77, 77),
        (255, 255, 255),
        (255, 255, 255),
        (10, 20, 30),
        (255, 255, 255),
        (255, 0, 0),
    ]


def test_deep_pixels_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    assert "more than 8 bits" in refusal(tmp_path)


def test_a_photo_stands_upright(tmp_path):
    photo = Image.new("RGB", (4, 2))
    exif = photo.getexif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees to show
    photo.save(tmp_path / "a.jpg", exif=exif)
    assert load("folder", path=tmp_path).shape == (3, 4, 2)


@pytest.mark.parametrize("keep", [0, 20, 200])
def test_a_broken_file_is_named(tmp_path, keep):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:keep])
    assert str(tmp_path / "b.png") in refusal(tmp_path)


def test_sizes_must_agree_unless_one_is_given(tmp_path):
    save(tmp_path / "a.png", size=(4, 4))
    save(tmp_path / "b.png", size=(12, 8))
    assert "b.png has 12 x 8 pixels, but a.png has 4 x 4" in refusal(tmp_path)
    assert load("folder", path=tmp_path, size=6).images.shape == (2, 3, 6, 6)


def test_a_size_keeps_the_middle(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "b.png")
    assert load("folder", path=tmp_path, size=4).images.eq(200).all()


def test_an_empty_folder_says_what_an_image_is(tmp_path):
    assert ".png" in refusal(tmp_path)


@pytest.mark.skipif(not any(EMOJI.rglob("*.png")), reason="needs the Noto emoji")
def test_noto_emoji():
    emoji = load("folder", path=EMOJI)
    assert emoji.images.shape == (3414, 3, 32, 32)
    assert emoji.labels is None
    assert set(emoji.columns) == {"file_name", "group"}
    row = emoji.columns["file_name"].index("emoji_u0023_20e3.png")
    assert emoji.captions[row] == ("keycap #",)
    with Image.open(EMOJI / "emoji_u0023_20e3.png") as image:
        rgba = np.asarray(image).astype(np.int64)
    alpha = rgba[..., 3:]
    expected = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    assert np.array_equal(emoji.images[row].permute(1, 2, 0).numpy(), expected)
