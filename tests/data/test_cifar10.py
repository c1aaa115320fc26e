import io
import tarfile

import pytest
import torch

from fewstep.data import cifar10, load
from fewstep.data.published import blank_images, find_published
from fewstep.download import home
from fewstep.errors import InputError

FOLDER = home() / "data" / "cifar-10-batches-bin"
FILES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
PRESENT = all((FOLDER / file).is_file() for file in FILES)
RECORDS = 4


def record(label, red, green, blue):
    return bytes([label]) + bytes([red]) * 1024 + bytes([green]) * 1024 + bytes([blue]) * 1024


def batch(first):
    return b"".join(record((first + i) % 10, first + i, 100, 200) for i in range(RECORDS))


@pytest.fixture
def folder(home, monkeypatch):
    """CIFAR-10 with four records a file; the images' reds count up, their labels modulo ten."""
    monkeypatch.setattr(cifar10, "RECORDS", RECORDS)
    folder = home / "data" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for i in range(5):
        (folder / f"data_batch_{i + 1}.bin").write_bytes(batch(i * RECORDS))
    (folder / "test_batch.bin").write_bytes(batch(50))
    return folder


def test_batches_follow_one_another(folder):
    train = load("cifar10")
    assert train.images[:, 0, 0, 0].tolist() == list(range(20))
    assert train.labels.tolist() == [i % 10 for i in range(20)]
    assert load("cifar10", split="test").images[:, 0, 31, 31].tolist() == [50, 51, 52, 53]
    assert train.columns == {}


def test_a_record_is_red_then_green_then_blue_by_rows(folder):
    pixels = bytes(range(256)) * 12
    path = folder / "test_batch.bin"
    path.write_bytes(bytes([3]) + pixels + path.read_bytes()[3073:])
    test = load("cifar10", split="test")
    assert test.labels[0] == 3
    for c, y, x in [(0, 0, 0), (0, 0, 31), (0, 1, 0), (1, 2, 3), (2, 31, 31)]:
        assert test.images[0, c, y, x] == pixels[1024 * c + 32 * y + x]


@pytest.mark.parametrize("size", [0, 3073 * RECORDS - 1, 3073 * (RECORDS - 1), 3073 * RECORDS + 1])
def test_a_batch_of_another_length_is_named(folder, size):
    (folder / "data_batch_3.bin").write_bytes(bytes(size))
    with pytest.raises(InputError, match="data_batch_3.bin has"):
        load("cifar10")


def test_a_label_beyond_ten_is_refused(folder):
    path = folder / "test_batch.bin"
    path.write_bytes(b"\x0b" + path.read_bytes()[1:])
    with pytest.raises(InputError, match="labels range from 1 to 11"):
        load("cifar10", split="test")


def test_file_names_come_with_their_images(folder):
    (folder / "test.csv").write_text("0,a.png\n1,b.png\n2,c.png\n3,d.png\n")
    assert load("cifar10", split="test").columns == {
        "file_name": ("a.png", "b.png", "c.png", "d.png")
    }


@pytest.mark.parametrize("table", ["", "0,a\n1,b\n2,c\n", "0,a\n1,b\n2,c\n4,d\n", "0\n1\n2\n3\n"])
def test_file_names_of_other_images_are_refused(folder, table):
    (folder / "test.csv").write_text(table)
    with pytest.raises(InputError, match="test.csv"):
        load("cifar10", split="test")


def test_captions_are_the_nouns_of_file_names(folder):
    names = ["tabby_cat_s_000123.png", "coupe_s_000001.png", "s_s_s_7.png", "st._bernard_s_1.png"]
    (folder / "test.csv").write_text("".join(f"{i},{name}\n" for i, name in enumerate(names)))
    images = load("cifar10-captions", split="test")
    assert images.captions == (("tabby cat",), ("coupe",), ("s s",), ("st. bernard",))
    plain = load("cifar10", split="test")
    assert torch.equal(images.images, plain.images) and plain.captions == ()
    assert images.name == "cifar10-captions" and images.fingerprint != plain.fingerprint


def test_captions_without_file_names_are_those_of_classes(folder):
    with pytest.warns(UserWarning, match=r"captions are the names of classes.* has no test\.csv"):
        images = load("cifar10-captions", split="test")
    assert images.captions == (("airplane",), ("automobile",), ("bird",), ("cat",))


def test_black_images_have_captions(home):
    published = find_published("cifar10-captions")
    images = blank_images(published, "cifar10-captions", "test", None)
    assert len(published.missing("test")) == 1 and images.labels.tolist()[:2] == [0, 1]
    assert images.captions[:2] == (("airplane",), ("automobile",)) and len(images) == 10_000
    assert blank_images(find_published("cifar10"), "cifar10", "test", None).captions == ()


def test_unpacking_takes_the_batches_and_nothing_else(tmp_path):
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in ["cifar/data_batch_1.bin", "../../test_batch.bin", "../evil", "cifar/readme"]:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            tar.addfile(entry, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("cifar/data_batch_2.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    target = tmp_path / "deep" / "folder"
    names = ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin")
    cifar10._unpack(archive, target, names)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [
        "a.tar.gz",
        "data_batch_1.bin",
        "test_batch.bin",
    ]
    assert (target / "test_batch.bin").read_bytes() == b"abc"


@pytest.mark.skipif(not PRESENT, reason="needs CIFAR-10")
def test_cifar10_is_the_published_set():
    train = load("cifar10")
    assert train.images.shape == (50_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert train.class_names[train.labels[0]] == "frog"
    mean = [train.images[:, c].float().mean().item() / 255 for c in range(3)]
    assert mean == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-5)
    test = load("cifar10", split="test")
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    assert test.class_names[test.labels[0]] == "cat"
    if "file_name" in test.columns:
        assert test.columns["file_name"][0] == "domestic_cat_s_000907.png"
        captions = load("cifar10-captions", split="test").captions
        assert captions[:3] == (("domestic cat",), ("hydrofoil",), ("sea boat",))
        assert all(caption.replace(" ", "").isalpha() for (caption,) in captions)
