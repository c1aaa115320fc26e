from dataclasses import dataclass

import pytest

import toy
from fewstep import plugins
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.base import Method, Task
from fewstep.methods.dmd import Dmd, DmdConfig
from fewstep.methods.matching import DistributionMatching
from fewstep.optimizers import FitConfig
from fewstep.times import FixedGrid


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


def test_a_task_has_the_length_of_its_training():
    teacher = Generator(toy.fresh(), toy.SPEC)
    assert Plain(Settings(), Task(toy.fresh(), toy.SPEC, teacher, 70)).steps == 70
    assert Task(toy.fresh(), toy.SPEC).steps == FitConfig().steps
    with pytest.raises(InputError, match="at least 1 step, not 0 steps"):
        Task(toy.fresh(), toy.SPEC, steps=0)


@pytest.mark.parametrize(
    ("name", "settings", "needed"),
    [
        ("progressive", {"first": 4}, 8),
        ("sfd", {"counts": (2,), "between": 1}, 4),
        ("dmd", {"steps": 2}, 2),
        ("sid", {"steps": 2}, 2),
    ],
)
def test_a_grid_without_the_times_that_a_method_needs_is_refused(name, settings, needed):
    kind, teacher = plugins.resolve("method", name), Generator(toy.fresh(), toy.SPEC)
    config = kind.Config(grid=FixedGrid(((0.4,),)), **settings)
    with pytest.raises(InputError, match="only for 1: ") as caught:
        kind(config, Task(toy.fresh(), toy.SPEC, teacher))
    assert f"no times for the {needed} steps" in str(caught.value)
