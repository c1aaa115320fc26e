"""Shapes in signatures are checked here and only here; one torch thread a worker."""

import atexit
import os
import shutil
import tempfile

import pytest
from jaxtyping import install_import_hook

install_import_hook("fewstep", "shapes.checked")

# what tests make once and keep is theirs, not the user's; child processes inherit it
os.environ["FEWSTEP_CACHE"] = tempfile.mkdtemp(prefix="fewstep-cache-")
atexit.register(shutil.rmtree, os.environ["FEWSTEP_CACHE"], ignore_errors=True)

import torch  # noqa: E402

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run the longer proofs")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="a longer proof: make slow"))


@pytest.fixture(autouse=True)
def seed():
    """Random numbers of a test do not depend on the tests before it, whose order differs."""
    torch.manual_seed(0)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty $FEWSTEP_HOME: no data set, no weights, no cache."""
    monkeypatch.setenv("FEWSTEP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def real_home():
    return os.environ.get("FEWSTEP_HOME", os.path.expanduser("~/.cache/fewstep"))
