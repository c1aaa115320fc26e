from pathlib import Path

import pytest

from fewstep.data import NAMES, load
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
    assert all(name in str(told.value) for name in NAMES)
    assert "\n" not in str(told.value)


def test_a_name_like_no_other_gets_no_guess():
    with pytest.raises(InputError) as told:
        load("xyzzy")
    assert "did you mean" not in str(told.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digits", "split": "test"}, "digits has no split 'test', only train"),
        ({"name": "mnist", "split": "valid"}, "only train, test"),
        ({"name": "folder", "split": "test", "path": "."}, "folder has no split"),
        ({"name": "digits", "size": 0}, "at least 1"),
        ({"name": "digits", "path": "somewhere"}, "takes no path"),
        ({"name": "celeba", "split": "validation"}, "only train, valid, test"),
        ({"name": "celeba"}, "celeba needs data.size"),
        ({"name": "celeba", "size": 8, "path": "/no/such/place"}, "/no/such/place/img_align"),
        ({"name": "folder"}, "needs a path"),
        ({"name": "folder", "path": "/no/such/place"}, "/no/such/place"),
    ],
)
def test_arguments_that_cannot_be_are_explained(arguments, message):
    with pytest.raises(InputError, match=message):
        load(**arguments)


def test_a_size_resizes():
    assert load("digits", size=12).shape == (1, 12, 12)
