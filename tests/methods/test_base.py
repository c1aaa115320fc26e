from dataclasses import dataclass

import pytest

import toy
from fewstep.errors import InputError
from fewstep.methods.base import Method, Task
from fewstep.methods.dmd import Dmd, DmdConfig
from fewstep.methods.fake_score import DistributionMatching


@dataclass(frozen=True)
class Settings:
    rate: float = 0.5


class Plain(Method[Settings]):
    reads = frozenset()

    def turns(self, step):
        yield from ()

    def generator(self):
        raise NotImplementedError


def test_the_generic_argument_is_the_config():
    assert Plain.Config is Settings
    assert Dmd.Config is DmdConfig  # through an abstract class that leaves it open
    assert not hasattr(DistributionMatching, "Config")


def test_a_subclass_may_keep_or_replace_the_config():
    class Same(Plain):
        pass

    class Other(DistributionMatching[Settings]):
        pass

    assert Same.Config is Settings and Other.Config is Settings


def test_a_method_that_distils_needs_a_teacher():
    with pytest.raises(InputError, match="Plain distils a teacher"):
        Plain(Settings(), Task(toy.fresh(), toy.SPEC))
