from pathlib import Path

import pytest
import torch

from fewstep import plugins
from fewstep.data import ImageSet, load, split_path
from fewstep.download import home
from fewstep.errors import InputError


def test_home_follows_the_environment_of_the_moment(monkeypatch, tmp_path):
    monkeypatch.setenv("FEWSTEP_HOME", str(tmp_path))
    assert home() == tmp_path
    monkeypatch.setenv("FEWSTEP_HOME", "~/elsewhere")
    assert home() == Path.home() / "elsewhere"
    monkeypatch.delenv("FEWSTEP_HOME")
    assert home() == Path.home() / ".cache" / "fewstep"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("cifar", "cifar10"), ("CIFAR-10", "cifar10"), ("fashion_mnist", "fashion-mnist")],
)
def test_an_unknown_name_is_told_the_nearest_and_all(asked, meant):
    with pytest.raises(InputError, match=f"did you mean {meant}") as told:
        load(asked)
    assert all(name in str(told.value) for name in plugins.names("data"))
    assert "\n" not in str(told.value)


def test_a_name_like_no_other_gets_no_guess():
    with pytest.raises(InputError) as told:
        load("xyzzy")
    assert "did you mean" not in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digits", "split": "test"}, "digits has no split 'test'; choose train"),
        ({"name": "mnist", "split": "valid"}, "choose train or test"),
        ({"name": "folder", "split": "test", "path": "."}, "folder has no split"),
        ({"name": "digits", "size": 0}, "at least 1"),
        ({"name": "digits", "path": "somewhere"}, "takes no path"),
        ({"name": "celeba", "split": "validation"}, "choose train or valid or test"),
        ({"name": "celeba"}, "celeba needs data.size"),
        ({"name": "celeba", "size": 8, "path": "/no/such/place"}, "/no/such/place/img_align"),
        (
            {"name": "folder"},
            "folder needs a path: write folder:PATH on the command line, or set data.path in a "
            "recipe, to the folder of the images",
        ),
        ({"name": "folder", "path": "/no/such/place"}, "/no/such/place"),
    ],
)
def test_arguments_that_cannot_be_are_explained(arguments, message):
    with pytest.raises(InputError, match=message):
        load(**arguments)


def read_squares(split):
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    return images if split == "broken" else ImageSet(split, images)


def read_from(split, *, path=None, size=None):
    return ImageSet(f"{split} {size} {path}", torch.zeros(1, 1, 5, 5, dtype=torch.uint8))


def test_a_strangers_reader_is_named_by_its_address():
    squares = f"{__name__}:read_squares"
    assert load(squares, split="any").name == "any"
    assert load(squares, size=8).shape == (1, 8, 8)
    with pytest.raises(InputError, match="takes no path"):
        load(squares, path="somewhere")
    with pytest.raises(InputError, match="returned Tensor, not a fewstep.data.ImageSet"):
        load(squares, split="broken")
    assert load(f"{__name__}:read_from", size=5, path="somewhere").name == "train 5 somewhere"
    with pytest.raises(InputError, match="os:path is no function"):
        load("os:path")
    with pytest.raises(InputError, match="cannot import the data no_such_package.sets:load"):
        load("no_such_package.sets:load")


def test_a_size_resizes():
    assert load("digits", size=12).shape == (1, 12, 12)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("digits", ("digits", None)),
        ("folder:photos", ("folder", "photos")),
        ("folder:/a b/c:d", ("folder", "/a b/c:d")),
        ("folder:C:/photos", ("folder", "C:/photos")),
        ("celeba:~/celeba", ("celeba", "~/celeba")),
        ("my_sets:read", ("my_sets:read", None)),
        ("my_package.sets:Flowers.read", ("my_package.sets:Flowers.read", None)),
        ("my_sets:read:/data/x:y", ("my_sets:read", "/data/x:y")),
    ],
)
def test_a_name_and_its_path_are_told_apart_from_an_address(address, expected):
    name, path = split_path(address)
    assert (name, path and path.as_posix()) == expected


def test_a_folder_alone_is_a_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("my images, 1", "digits", "a.b"):
        (tmp_path / name).mkdir()
    assert split_path(str(tmp_path)) == ("folder", tmp_path)
    assert split_path("my images, 1") == ("folder", Path("my images, 1"))
    assert split_path("a.b") == ("folder", Path("a.b"))
    assert split_path("digits") == ("digits", None)  # names come first
    assert split_path("./digits") == ("folder", Path("digits"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("folder:", "folder: has no path after the colon; write folder:PATH"),
        ("foldr:photos", "unknown data set 'foldr'; did you mean folder? (choose one of digits, "),
        ("CIFAR-10", "unknown data set 'CIFAR-10'; did you mean cifar10? (choose one of digits, "),
        ("./photos", "folder:PATH is a folder of images, and my_package.my_module:my_function a "),
        ("my_sets:/photos", "unknown data set 'my_sets' (choose one of"),
        ("my_sets:read:", "unknown data set 'my_sets' (choose one of"),
    ],
)
def test_a_set_that_is_not_named_as_it_must_be_is_one_line(address, message, tmp_path):
    with pytest.raises(InputError) as refusal:
        split_path(address.format(tmp=tmp_path))
    assert message.format(tmp=tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)
