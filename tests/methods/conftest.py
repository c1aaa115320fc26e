import pytest

import toy


@pytest.fixture(scope="session")
def teacher():
    return toy.train_teacher()


@pytest.fixture(scope="session")
def pairs(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "store"
    toy.record_pairs(teacher, folder)
    return folder
