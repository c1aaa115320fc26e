"""Every numeric setting has a range, and what is out of range is refused in one line."""

import math
from dataclasses import is_dataclass
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt

from fewstep import plugins, recipe
from fewstep.description import _Description, from_description
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.ranges import NONEMPTY, Positive, Probability, describe, split
from fewstep.tables import field_types, from_table

NOUNS = ("process", "parametrization", "backbone", "sampler", "grid", "density", "levels")


def settings_classes():
    """Every class whose fields are settings of a recipe, or the description in a weights file."""
    queue = [*recipe._SECTIONS.values(), _Description]
    queue += [plugins.resolve("method", name).Config for name in plugins.REGISTRY["method"]]
    for noun in (*NOUNS, "distance"):
        queue += [plugins.resolve(noun, name) for name in plugins.REGISTRY[noun]]
    seen = []
    while queue:
        kind = queue.pop()
        if not is_dataclass(kind) or kind in seen:
            continue
        seen.append(kind)
        for field in field_types(kind).values():
            queue += leaves(field)
    return seen


def leaves(kind):
    """The types in a type, without unions, lists and tables."""
    bare, _ = split(kind)
    origin = get_origin(bare)
    if origin in (Union, UnionType, tuple, dict):
        return [leaf for inner in get_args(bare) if inner is not ... for leaf in leaves(inner)]
    return [kind]


def lacks_a_range(kind):
    bare, limits = split(kind)
    low = any(isinstance(limit, Ge | Gt) for limit in limits)
    high = any(isinstance(limit, Le | Lt) for limit in limits)
    return bare in (int, float) and not (low and high)


def test_every_number_among_the_settings_has_a_range():
    classes = settings_classes()
    assert len(classes) > 60
    without = [
        f"{kind.__qualname__}.{name}"
        for kind in classes
        for name, field in field_types(kind).items()
        if any(map(lacks_a_range, leaves(field)))
    ]
    assert without == []


def test_the_walk_finds_numbers_without_a_range():
    kinds = (int, float | None, tuple[float, ...], dict[str, int], Annotated[int, Ge(0)])
    assert all(any(map(lacks_a_range, leaves(kind))) for kind in kinds)
    kinds = (bool, str | None, Literal[1, 2], Probability, Positive | tuple[Probability, ...])
    assert not any(any(map(lacks_a_range, leaves(kind))) for kind in kinds)


WRONG = [
    ("digits-flow", "fit.seed=-1", r"fit.seed is -1; it must be an integer from 0"),
    ("digits-flow", "fit.seed=18446744073709551616", "fit.seed is 18446744073709551616"),
    ("digits-flow", "fit.batch=1000000000000", "fit.batch is 1000000000000; .* to 1,048,576"),
    ("digits-flow", "fit.micro_batch=-4", "fit.micro_batch is -4; .* from 0 to"),
    ("digits-flow", "fit.ema_rampup=nan", "fit.ema_rampup is nan; .* a number from 0"),
    ("digits-flow", "fit.ema_halflife=[0.1,-1]", "fit.ema_halflife.1 is -1; .* above 0"),
    ("digits-flow", "fit.clip=-0.5", "fit.clip is -0.5"),
    ("digits-flow", "fit.betas=[0.9]", r"fit.betas is \[0.9\]; .* a list of 2 values"),
    ("digits-flow", "fit.betas=0.9", "fit.betas is 0.9; .* a list of 2 values, each a number"),
    ("digits-flow", "fit.players.student.betas=[1.0,0.5]", "players.student.betas.0 is 1.0"),
    ("digits-flow", "fit.precision=\"f16\"", "fit.precision is 'f16'; .* one of f32, tf32, bf16"),
    ("digits-flow", "fit.compile=1", "fit.compile is 1; it must be true or false"),
    ("digits-flow", "fit.steps=true", "fit.steps is True; it must be an integer from 1"),
    ("digits-flow", "fit.steps=1.5", "fit.steps is 1.5; it must be an integer"),
    ("digits-flow", "fit.lr=1e300", r"fit.lr is 1e\+300"),
    ("digits-flow", "fit.lr=1979-05-27", "fit.lr is datetime.date.*; it must be a number above 0"),
    ("digits-flow", "data.size=0", "data.size is 0; .* from 1"),
    ("digits-flow", "data.augment_kinds=[\"up\"]", "augment_kinds.0 is 'up'; .* one of x-flip"),
    ("digits-flow", "evaluate.steps=[]", r"evaluate.steps is \[\]; .* a list of at least 1"),
    ("digits-flow", "evaluate.steps=[4,0]", "evaluate.steps.1 is 0"),
    ("digits-flow", "evaluate.samples=1", "evaluate.samples is 1; .* from 2"),
    ("digits-flow", "student.start=1.5", "student.start is 1.5; .* above 0 and at most 1"),
    ("digits-flow", "student.start={snr=-1}", "student.start.snr is -1"),
    ("digits-flow", "student.start=\"early\"", "student.start is 'early'; .* or a table"),
    ("digits-flow", "student.dropout=1.0", "student.dropout is 1.0; .* to below 1"),
    ("digits-flow", "student.backbone.channels=[]", r"channels is \[\]; .* at least 1"),
    ("digits-flow", "student.backbone.channels=[32,1000000000000]", "channels.1 is 1000000000000"),
    ("digits-flow", "student.backbone.layers=9999999", "layers is 9999999; .* from 1 to 1,000"),
    ("digits-flow", "student.backbone.level_scale=0.0", "level_scale is 0.0; .* above 0"),
    ("digits-flow", "student.backbone.freq_shift=inf", "freq_shift is inf"),
    ("digits-flow", "student.process={name=\"ve\",sigma_max=-1}", "process.sigma_max is -1"),
    ("digits-flow", "student.process={name=\"vp\",beta_0=nan}", "process.beta_0 is nan"),
    ("digits-flow", 'student.process={name="linear-betas",beta_1=1.0}', "does not decrease within"),
    ("digits-flow", "method.density={name=\"lognormal\",std=1e9}", "density.std is 1000000000.0"),
    ("digits-flow", 'student.backbone={name="edm-unet",level_width=3}', "an even integer from 4"),
    ("digits-flow", 'student.backbone={name="edm-unet",level_width=2}', "level_width is 2"),
    ("digits-flow", "method.sampler={name=\"renoise\",share=2}", "sampler.share is 2"),
    ("digits-flow", "method.grid={name=\"fixed\",times=[[]]}", "a fixed grid has 1 lists"),
    ("digits-flow", "method.grid={name=\"fixed\",times=[[1.5]]}", "grid.times.0.0 is 1.5"),
    ("digits-dmd", "method.fake.dropout=2.0", "method.fake.dropout is 2.0"),
    ("digits-dmd", "method.steps=0", "method.steps is 0"),
    ("digits-dmd", "teacher.guidance=-1.0", "teacher.guidance is -1.0; .* from 0"),
    ("digits-meanflow", "method.interval=[0.0,3.0]", "method.interval.1 is 3.0"),
    ("digits-circuit", "student.backbone.state.channels=0", "state.channels is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("preset", "override", "message"), WRONG)
def test_a_value_out_of_range_is_explained(preset, override, message):
    with pytest.raises(InputError, match=message) as error:
        recipe.read(preset, [override])
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_a_weights_file_is_held_to_the_same_ranges(tiny_description):
    for key, value in (
        ("guidance", -2.0),
        ("guidance", math.nan),
        ("span", [0.5, 2.0]),
        ("process", {"name": "ve", "sigma_max": -80.0}),
        ("parametrization", {"name": "edm", "sigma_data": 0.0}),
        ("grid", {"name": "karras", "rho": -7}),
        ("step", {"name": "transfer", "clip": -1.0}),
        ("spec", {"shape": [1, 8, 0], "classes": 0}),
        ("spec", {"shape": [1, 8, 8], "classes": 10**12}),
        ("backbone", {"name": "mlp", "width": 10**12}),
    ):
        with pytest.raises(InputError, match=rf"generator\.{key}.* is .*; it must be"):
            from_description({**tiny_description, key: value})


@pytest.fixture
def tiny_description():
    from fewstep.backbones import MLPConfig
    from fewstep.denoiser import Denoiser
    from fewstep.parametrization import Velocity
    from fewstep.process import Flow
    from fewstep.sample_spec import SampleSpec

    network = MLPConfig(width=8, depth=1).build(shape=(2,))
    return Generator(Denoiser(network, Flow(), Velocity()), SampleSpec((2,))).describe()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Positive, "a number above 0 and at most 1e+30"),
        (Annotated[int, Ge(1), Le(4096)], "an integer from 1 to 4,096"),
        (Annotated[float, Ge(0), Lt(1)] | None, "a number from 0 to below 1"),
        (Annotated[float, Gt(0), Lt(1)], "a number above 0 and below 1"),
        (Annotated[tuple[Probability, ...], NONEMPTY],
         "a list of at least 1, each a number from 0 to 1"),
        (Literal["a", "b"], "one of a, b"),
        (bool | str, "true or false or text"),
    ],
)  # fmt: skip
def test_types_are_described(kind, words):
    assert describe(kind) == words


def test_whole_numbers_are_numbers_and_true_is_none():
    assert from_table(Positive, 3, "key") == 3.0
    for value in (True, "3", None, [3], 10**400):
        with pytest.raises(InputError, match="key is .*; it must be a number above 0"):
            from_table(Positive, value, "key")
