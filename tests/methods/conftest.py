import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import toy


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)` is a path that `make` filled once for all workers of this session."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def path(name, make):
        whole, part = folder / name, folder / f"{name}.part"
        with FileLock(folder / f"{name}.lock"):
            if not whole.exists():
                make(part)
                part.rename(whole)
        return whole

    return path


def load(path: Path):
    return torch.load(path, weights_only=False)


@pytest.fixture(scope="session")
def teacher(once):
    return load(once("teacher", lambda path: torch.save(toy.train_teacher(), path)))


@pytest.fixture(scope="session")
def ring(once):
    """A trained circuit."""
    return load(once("ring", lambda path: torch.save(toy.train_circuit(), path)))


@pytest.fixture(scope="session")
def pairs(teacher, once):
    return once("pairs", lambda path: toy.record_pairs(teacher, path))


@pytest.fixture(scope="session")
def rings(ring, once):
    return once("rings", lambda path: toy.record_rings(ring, path))


@pytest.fixture(scope="session")
def start(teacher):
    """What the teacher reaches in one step."""
    return toy.distance(teacher, 1)


@pytest.fixture
def source(name, request):
    """The teacher of the method `name`: a circuit for those who sum its ring."""
    return request.getfixturevalue("ring" if name == "residual_sum" else "teacher")


@pytest.fixture
def folder(name, request):
    """What that teacher recorded."""
    return request.getfixturevalue("rings" if name == "residual_sum" else "pairs")
