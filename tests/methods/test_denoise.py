"""The teacher's training: which sampler it gets, and that its classes are trained."""

import math

import pytest

from fewstep import plugins, recipe
from fewstep.abilities import why_not_guidable, with_guidance
from fewstep.backbones import MLPConfig
from fewstep.circuits.view import Ring
from fewstep.denoiser import Denoiser
from fewstep.description import from_description
from fewstep.errors import InputError
from fewstep.evaluation import count_evaluations
from fewstep.methods.base import Task, check_condition_dropout
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.methods.meanflow import Meanflow, MeanflowConfig
from fewstep.parametrization import EDM
from fewstep.process import VE
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Heun, Transfer
from fewstep.times import KarrasGrid

METHODS = ("denoise", "meanflow", "circuit")


def task(classes=3):
    spec = SampleSpec((2,), classes)
    network = MLPConfig(width=8).build(shape=(2,), classes=classes)
    return Task(Denoiser(network, VE(), EDM()), spec, None, 10)


def test_the_recipe_names_the_sampler_of_the_teacher():
    assert Denoise(DenoiseConfig(), task()).generator().step == Transfer()
    config = DenoiseConfig(sampler=Heun(clip=1.0), grid=KarrasGrid())
    generator = Denoise(config, task()).generator()
    assert (generator.step, generator.grid) == (Heun(clip=1.0), KarrasGrid())
    assert from_description(generator.describe()).step == Heun(clip=1.0)
    # 18 steps are 35 network evaluations, as EDM counts them
    assert count_evaluations(generator, 18) == 35
    assert recipe.read("cifar10-edm").method.sampler == Heun()
    with pytest.raises(InputError, match="ring, which samples only networks of its own kind"):
        DenoiseConfig(sampler=Ring())


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("name", METHODS)
def test_condition_dropout_is_a_fraction(name, share):
    with pytest.raises(InputError, match="condition_dropout"):
        plugins.resolve("method", name).Config(condition_dropout=share)


def test_classes_that_would_not_be_trained_are_refused():
    """Of any method with this setting, by the base class."""
    for kind in (Denoise, Meanflow):
        method = kind.Config(condition_dropout=1.0)
        with pytest.raises(InputError, match=r"1.0, which leaves the 3 classes.*data.labels=false"):
            kind(method, task())
        kind(method, task(classes=0))
    with pytest.raises(InputError, match="leaves the 10 classes untrained"):
        check_condition_dropout(1, SampleSpec((1, 8, 8), 10))
    with pytest.raises(InputError, match="condition_dropout = 0.0 does not train: set it to 0.1"):
        Meanflow(MeanflowConfig(guidance=2.0, condition_dropout=0.0), task())


@pytest.mark.parametrize(
    ("name", "settings", "guidable"),
    [
        ("denoise", {"condition_dropout": 0.1}, True),
        ("denoise", {"condition_dropout": 0.0}, False),
        ("meanflow", {"condition_dropout": 0.1, "guidance": 2.0, "kappa": 0.0}, True),
        ("meanflow", {"condition_dropout": 0.1, "guidance": 1.0, "kappa": 0.5}, True),
        # without guidance, MeanFlow drops no label
        ("meanflow", {"condition_dropout": 0.1, "guidance": 1.0, "kappa": 0.0}, False),
        ("dmd", {}, False),
        # code of others is not imported: its setting of the same name counts
        ("other.package:Method", {"condition_dropout": 0.1}, True),
    ],
)
def test_guidance_needs_condition_dropout(name, settings, guidable):
    generator = Denoise(DenoiseConfig(), task()).generator()
    table = {"method": {"name": name, **settings}}
    assert (why_not_guidable(generator, table) == "") == guidable
    if guidable:
        with_guidance(generator, 2.0, table)
    else:
        with pytest.raises(InputError, match=f"but its method, {name}, trained it with labels"):
            with_guidance(generator, 2.0, table)
    # nothing is known of checkpoints of other projects
    with_guidance(generator, 2.0, None)
    assert with_guidance(generator, 1.0, table) is generator
