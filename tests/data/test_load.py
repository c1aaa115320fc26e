from pathlib import Path

import pytest
import torch

from fewstep import plugins
from fewstep.data import ImageSet, load
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
        ({"name": "folder"}, "needs a path"),
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
    with pytest.raises(InputError, match="cannot import the data no_such_package.sets:load"):
        load("no_such_package.sets:load")


def test_a_size_resizes():
    assert load("digits", size=12).shape == (1, 12, 12)
