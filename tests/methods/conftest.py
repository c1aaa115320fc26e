import pytest

import toy


@pytest.fixture(scope="session")
def teacher():
    return toy.train_teacher()


@pytest.fixture(scope="session")
def start(teacher):
    """What the teacher reaches in one step."""
    return toy.distance(teacher, 1)


@pytest.fixture(scope="session")
def ring():
    return toy.train_circuit()


@pytest.fixture(scope="session")
def rings(ring, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rings") / "store"
    toy.record_rings(ring, folder)
    return folder


@pytest.fixture(scope="session")
def pairs(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "store"
    toy.record_pairs(teacher, folder)
    return folder


@pytest.fixture
def source(name, request):
    """The teacher: of those who sum a ring, the ring's."""
    return request.getfixturevalue("ring" if name == "residual_sum" else "teacher")


@pytest.fixture
def folder(name, request):
    """What the teacher recorded."""
    return request.getfixturevalue("rings" if name == "residual_sum" else "pairs")
