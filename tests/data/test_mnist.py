import gzip
import hashlib
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.data import load
from fewstep.data.mnist import SOURCES
from fewstep.download import home
from fewstep.errors import InputError

DATA = home() / "data"


def present(name):
    return all((DATA / name / file).is_file() for file in SOURCES[name].md5)


def idx(values, *shape):
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(values)


@pytest.fixture
def folder(home):
    """Three images of 2 x 2 as the test split of MNIST."""
    folder = home / "data" / "mnist"
    folder.mkdir(parents=True)
    write(folder / "t10k-images-idx3-ubyte.gz", idx(range(12), 3, 2, 2))
    write(folder / "t10k-labels-idx1-ubyte.gz", idx([7, 0, 9], 3))
    return folder


def write(path, content):
    path.write_bytes(gzip.compress(content))


def test_reads_a_hand_made_file(folder):
    mnist = load("mnist", split="test")
    assert torch.equal(mnist.images, torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2))
    assert mnist.labels.tolist() == [7, 0, 9]
    assert mnist.classes == 10


GOOD = idx(range(12), 3, 2, 2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        GOOD[:9],
        GOOD[:-1],
        GOOD + b"\0",
        b"\0\0\x0b\x03" + GOOD[4:],
        b"\0\0\x08\x01" + GOOD[4:],
        idx([], 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
    ],
    ids=["empty", "no header", "short", "long", "int16", "rank", "huge"],
)
def test_a_wrong_idx_file_is_named(folder, content):
    path = folder / "t10k-images-idx3-ubyte.gz"
    write(path, content)
    with pytest.raises(InputError, match="remove it") as told:
        load("mnist", split="test")
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_cut_gz_is_never_accepted(data, tmp_path_factory):
    from fewstep.data.mnist import read_idx

    path = tmp_path_factory.mktemp("cut") / "images.gz"
    whole = gzip.compress(GOOD)
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(InputError, match="images.gz cannot be read"):
        read_idx(path, dimensions=3)


def test_counts_must_agree(folder):
    write(folder / "t10k-labels-idx1-ubyte.gz", idx([1, 2], 2))
    with pytest.raises(InputError, match="3 images, but .* 2 labels"):
        load("mnist", split="test")


def test_labels_of_another_set_are_refused(folder):
    write(folder / "t10k-labels-idx1-ubyte.gz", idx([1, 2, 46], 3))
    with pytest.raises(InputError, match="labels range from 1 to 46"):
        load("mnist", split="test")


def test_sets_have_ten_distinct_classes_and_four_files():
    for source in SOURCES.values():
        assert len(set(source.class_names)) == 10
        assert len(source.md5) == len(set(source.md5.values())) == 4


@pytest.mark.skipif(not present("mnist"), reason="needs MNIST")
def test_mnist_is_the_published_set():
    train = load("mnist")
    assert train.images.shape == (60_000, 1, 28, 28)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(train.labels).tolist() == counts
    # the normalisation everybody uses
    assert train.images.float().mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert train.images.float().std() / 255 == pytest.approx(0.3081, abs=5e-5)
    test = load("mnist", split="test")
    assert len(test) == 10_000
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.skipif(not present("fashion-mnist"), reason="needs Fashion-MNIST")
def test_fashion_mnist_is_the_published_set():
    train = load("fashion-mnist")
    assert torch.bincount(train.labels).tolist() == [6000] * 10
    assert train.class_names[train.labels[0]] == "ankle boot"
    assert train.images.float().mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert train.images.float().std() / 255 == pytest.approx(0.3530, abs=5e-5)
    for file, md5 in SOURCES["fashion-mnist"].md5.items():
        content = (DATA / "fashion-mnist" / file).read_bytes()
        assert hashlib.md5(content).hexdigest() == md5
