"""Teachers, data, pairs and compared runs are matched by the names of classes, not their number."""

import pytest
import torch

from analytic import exact
from fewstep import runs
from fewstep.backbones import UNetConfig
from fewstep.comparison import Exhibit
from fewstep.data import ImageSet
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.export.browser import _check_sources
from fewstep.export.source import Source
from fewstep.generator import Generator
from fewstep.loading import load_runs
from fewstep.metrics import EvalProtocol
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.recipe import parse
from fewstep.recording import Recording, record
from fewstep.report.exhibits import style_exhibits
from fewstep.sample_spec import SampleSpec
from fewstep.store_recipes import open_store
from fewstep.streams import PairStream
from fewstep.student import check_spec
from fewstep.studio.workshop import Model

SHAPE = (1, 8, 8)
CAT_DOG = ("cat", "dog")
DIFFERENT = {
    ("dog", "cat"): "class 0 is 'cat' and 'dog'",
    ("cat", "ant"): "class 1 is 'dog' and 'ant'",
    ("Cat", "dog"): "class 0 is 'cat' and 'Cat'",
    ("0", "1"): "class 0 is 'cat' and '0'",
    ("кот", "пёс"): "class 0 is 'cat' and 'кот'",
    ("cat ", "dog"): "class 0 is 'cat' and 'cat '",
}
RECIPE = parse({"data": {"name": "digits"}, "method": {"name": "regress"}, "pairs": {"load": "x"}})


def generator(names, classes=2):
    spec = SampleSpec(SHAPE, classes, names)
    return Generator(exact(Flow(), Velocity(), SHAPE), spec)


@pytest.mark.parametrize("names", DIFFERENT, ids="-".join)
def test_a_teacher_of_other_classes_is_refused(names):
    with pytest.raises(InputError, match="the classes of the teacher x are not those of") as error:
        check_spec(generator(CAT_DOG), "the teacher x", RECIPE, SampleSpec(SHAPE, 2, names))
    assert DIFFERENT[names] in str(error.value)


@pytest.mark.parametrize(("own", "other"), [(CAT_DOG, CAT_DOG), ((), CAT_DOG), (CAT_DOG, ())])
def test_classes_without_names_are_matched_by_number(own, other):
    check_spec(generator(own), "the teacher", RECIPE, SampleSpec(SHAPE, 2, other))


@pytest.mark.parametrize("names", DIFFERENT, ids="-".join)
def test_runs_of_other_classes_are_not_compared(names):
    first, second = generator(CAT_DOG), generator(names)
    exhibits = [Exhibit(str(i), g, [], None, [], []) for i, g in enumerate((first, second))]
    with pytest.raises(InputError, match="0 and 1 have different classes") as error:
        style_exhibits(exhibits)
    assert DIFFERENT[names] in str(error.value)
    sources = [Source("a", first, (1,), ""), Source("b", second, (1,), "")]
    with pytest.raises(InputError, match="the teacher a has other classes than b") as error:
        _check_sources(sources[1], sources[0])
    assert DIFFERENT[names] in str(error.value)
    models = [Model("a", first, "", None, "", ""), Model("b", second, "", None, "", "")]
    assert models[0].class_difference(models[1]) == DIFFERENT[names]


@pytest.mark.parametrize("names", [("dog", "cat"), CAT_DOG, ("cat", "ant")], ids="-".join)
def test_a_reference_of_the_same_classes_in_another_order_is_refused(names):
    pixels = torch.arange(2 * 64).view(2, *SHAPE).to(torch.uint8)
    images = ImageSet("pets", pixels.repeat(10, 1, 1, 1), torch.arange(2).repeat(10), names)
    evaluator = Evaluator(images, EvalProtocol(20, "pixels"))
    if names == ("cat", "ant"):
        with pytest.warns(UserWarning, match="pets differ .class 1 is 'dog' and 'ant'"):
            evaluator.score(generator(CAT_DOG), steps=1)
        return
    if names == CAT_DOG:
        assert evaluator.score(generator(CAT_DOG), steps=1).samples == 20
        return
    with pytest.raises(InputError, match="pets have the same classes in another order: class 0"):
        evaluator.score(generator(CAT_DOG), steps=1)


def small(names):
    network = UNetConfig(channels=(4,), layers=1, attention=(), groups=2)
    backbone = network.build(shape=SHAPE, classes=2)
    return Generator(Denoiser(backbone, Flow(), Velocity()), SampleSpec(SHAPE, 2, names))


def test_saved_runs_of_other_classes_are_not_compared(tmp_path):
    for name, names in {"a": CAT_DOG, "b": ("cat", "ant"), "c": ()}.items():
        runs.save_generator(tmp_path / name, small(names), None, {})
    assert len(load_runs([str(tmp_path / name) for name in "ac"])) == 2
    with pytest.raises(InputError, match="a and b have different classes: class 1 is 'dog'"):
        load_runs([str(tmp_path / name) for name in "ab"])


def test_pairs_of_other_classes_are_refused(tmp_path):
    for name, names in {"named": CAT_DOG, "nameless": ()}.items():
        for _ in record(small(names), tmp_path / name, Recording(4, 1), teacher="hash"):
            pass

    def open_pairs(name, spec):
        table = {"data": {"name": "digits"}, "method": {"name": "regress"}}
        recipe = parse(table | {"pairs": {"load": str(tmp_path / name)}})
        return open_store(recipe, spec, PairStream, None)

    for names in DIFFERENT:
        spec = SampleSpec(SHAPE, 2, names)
        with pytest.raises(InputError, match="the classes of the pairs in") as error:
            open_pairs("named", spec)
        assert DIFFERENT[names] in str(error.value)
        open_pairs("nameless", spec)
    for spec in (SampleSpec(SHAPE, 2, CAT_DOG), SampleSpec(SHAPE, 2), SampleSpec(SHAPE)):
        open_pairs("named", spec)
    with pytest.raises(InputError, match="only one of them has class 2, 'ant'"):
        open_pairs("named", SampleSpec(SHAPE, 3, (*CAT_DOG, "ant")))
