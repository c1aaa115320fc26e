"""Weights: found, fetched, checked and read, with made-up files under the published names."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file

from fewstep.errors import InputError
from fewstep.metrics.extractors import weights as module
from fewstep.metrics.extractors.weights import PUBLISHED, find_weights, load_weights

TENSORS = {"conv1.weight": torch.arange(4.0)}


@pytest.fixture
def any_digest(monkeypatch):
    """Accept any bytes in the file of the published name."""
    entry = PUBLISHED["resnet56-cifar10"]._replace(sha256="")
    monkeypatch.setitem(PUBLISHED, "resnet56-cifar10", entry)


def put(home, file, content=TENSORS, **wrapped):
    path = home / "weights" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(wrapped or content, path)
    return path


@pytest.fixture
def offline(monkeypatch):
    def refused(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr("fewstep.download.urlopen", refused)


def test_what_is_missing_says_which_file_goes_where(home, offline):
    for name, told in PUBLISHED.items():
        assert find_weights(name) is None
        with pytest.raises(InputError) as error:
            load_weights(name)
        assert all(file in str(error.value) for file in told.files)
        assert str(home / "weights") in str(error.value)


@pytest.mark.parametrize("file", ["resnet56-cifar10.safetensors", "resnet56-4bfd9763.th"])
def test_either_name_and_format_is_read(home, any_digest, file):
    path = put(home, file)
    assert find_weights("resnet56-cifar10") == path
    assert torch.equal(load_weights("resnet56-cifar10")["conv1.weight"], TENSORS["conv1.weight"])


def test_a_training_checkpoint_is_unwrapped(home, any_digest):
    inner = {f"module.{key}": value for key, value in TENSORS.items()}
    put(home, "resnet56-4bfd9763.th", state_dict=inner, best_prec1=93.39)
    assert list(load_weights("resnet56-cifar10")) == ["conv1.weight"]


def test_the_published_file_is_fetched_and_checked(home, monkeypatch):
    asked = []

    def fetched(url, digest, target, *, otherwise):
        asked.append((url, digest))
        put(home, target.name)

    monkeypatch.setattr(module, "fetch", fetched)
    published = PUBLISHED["alexnet"]
    # what is there is compared with its digest too: it may be damaged since the download
    for _ in range(2):
        with pytest.raises(InputError, match="instead of the published 7be5be79; put the file of"):
            load_weights("alexnet")
    assert asked == [(published.url, "sha256:7be5be79")]
    monkeypatch.setitem(PUBLISHED, "alexnet", published._replace(sha256=""))
    assert load_weights("alexnet")


def test_nothing_but_the_published_inception_is_taken(home):
    path = put(home, "weights-inception-2015-12-05-6726825d.pth")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"has SHA256 {found} instead of the published 6726825d"):
        load_weights("inception")


@pytest.mark.parametrize("file", ["resnet56-cifar10.safetensors", "resnet56-4bfd9763.th"])
@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"no weights", b"\x80\x02]", b"(lp0\n."])
def test_a_damaged_file_is_named(home, any_digest, file, content):
    path = put(home, file)
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{file} is damaged"):
        load_weights("resnet56-cifar10")


def test_no_pickle_is_run(home, any_digest):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    put(home, "resnet56-4bfd9763.th", content={"a": Evil()})
    with pytest.raises(InputError, match="is damaged"):
        load_weights("resnet56-cifar10")
