"""A program of instructions, run by the reference interpreter, gives the sampler's images."""

from dataclasses import dataclass

import pytest
import torch

from exporting import unet_generator
from fewstep.abilities import why_not_paintable
from fewstep.condition import Condition
from fewstep.errors import InputError
from fewstep.export.linear import run_program, sampling_program
from fewstep.export.program import Unrolled
from fewstep.noise import RowNoise
from fewstep.painting import paint, paint_times
from fewstep.parametrization import EDM, V
from fewstep.process import VE, Cosine
from fewstep.sampling import (
    Ancestral,
    Corrector,
    EulerMaruyama,
    Heun,
    Multistep,
    Renoise,
    Step,
    StochasticHeun,
    StochasticMultistep,
    Transfer,
    UniPC,
)
from fewstep.times import FixedGrid, KarrasGrid

STEPS = [
    Transfer(), Transfer(clip=0.5), Renoise(0.5), Renoise(clip=1.0), Ancestral(), Heun(),
    Heun(clip=1.0), Multistep(), Multistep(clip=1.0), Multistep(3), Ancestral("large", clip=1.0),
    UniPC(), UniPC(3, clip=1.0), EulerMaruyama(), StochasticMultistep(), StochasticHeun(),
]  # fmt: skip


def both(generator, steps, freedom=None):
    """(images of the program, images of the generator)."""
    noise, cond = RowNoise([7, 8, 9]), Condition(torch.tensor([0, 2, -1]))
    start = noise.draw(0, generator.spec.shape)
    picture = noise.draw(99, generator.spec.shape).clamp(-1, 1)
    net = generator.denoiser.backbone
    program = sampling_program(generator, steps, freedom=freedom)
    images = run_program(
        program,
        lambda x, level, level_s: net(x, level, level_s=level_s, cond=cond),
        [start] if freedom is None else [start, picture],
        lambda k: noise.draw(k, generator.spec.shape),
    )
    if freedom is None:
        return images, generator(start, steps=steps, cond=cond, seed=[7, 8, 9])
    options = {"freedom": freedom, "steps": steps, "cond": cond, "seed": [7, 8, 9]}
    return images, paint(generator, picture, start, **options)


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("freedom", [None, 0.6])
def test_a_program_is_the_sampler(step, freedom):
    images, expected = both(unet_generator(step=step), 3, freedom)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"flow_map": True},
        {"process": VE(80.0), "parametrization": EDM(), "grid": KarrasGrid()},
        {"process": Cosine(), "parametrization": V()},
    ],
    ids=lambda changes: ", ".join(changes),
)
@pytest.mark.parametrize("freedom", [None, 0.3])
def test_a_program_of_other_networks(changes, freedom):
    images, expected = both(unet_generator(**changes), 2, freedom)
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-4)


@dataclass(frozen=True)
class Ratio(Step):
    def __call__(self, context, x_t, t, s):
        prediction = context.predict(x_t, t)
        return 1.0 - 0.5 * prediction.x0 / 2 + torch.neg(x_t), None


@dataclass(frozen=True)
class Mean(Step):
    def __call__(self, context, x_t, t, s):
        return x_t.mean() * context.predict(x_t, t).x0, None


@dataclass(frozen=True)
class FromSeeds(Step):
    def __call__(self, context, x_t, t, s):
        return context.predict(x_t, t).x0 + context.noise.draw(1, (1, 8, 8)), None


@dataclass(frozen=True)
class Wrong(Step):
    def __call__(self, context, x_t, t, s):
        return {}["no such key"], None


@dataclass(frozen=True)
class ByAlpha(Step):
    """Divides by alpha, which is 0 at the start."""

    def __call__(self, context, x_t, t, s):
        prediction = context.predict(x_t, t)
        return prediction.x0 / prediction.alpha, None


@dataclass(frozen=True)
class Sums(Step):
    """Sums of Python, and a state without any term."""

    def __call__(self, context, x_t, t, s):
        prediction = context.predict(x_t, t)
        if s is None:
            return sum([0.25 * prediction.x0, 0.5 * x_t]), None
        return 0 * prediction.x0, None


def test_a_state_may_be_zero_and_a_sum_of_python():
    images, expected = both(unet_generator(step=Sums()), 2)
    assert expected.any()
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-5)
    program = sampling_program(unet_generator(step=Sums()), 2)
    pairs = [i.get("sum") or i.get("network") for i in program["instructions"]]
    assert all(pairs)  # an empty sum has no shape


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (FromSeeds(), "draws noise from seeds, which a program does not have"),
        (Wrong(), "KeyError: 'no such key' in `return {}.*test_linear.py line"),
    ],
)
@pytest.mark.parametrize("program", [sampling_program, Unrolled])
def test_a_sampler_that_fails_gets_one_line(step, message, program):
    with pytest.raises(InputError, match=message) as error:
        program(unet_generator(step=step), 2)
    assert "\n" not in str(error.value)


def test_a_division_by_zero_gets_one_line():
    with pytest.raises(InputError, match="infinite or not a number"):
        sampling_program(unet_generator(step=ByAlpha()), 2)


@pytest.mark.parametrize(
    ("step", "operation"), [(Corrector(), "vector_norm"), (Mean(), "mean"), (Ratio(), "number")]
)
def test_a_sampler_that_is_no_sum_is_refused_with_its_operation(step, operation):
    with pytest.raises(InputError, match=rf"more than sums.*{operation}.*onnx"):
        sampling_program(unet_generator(step=step), 2)


def test_painting_keeps_the_grid_and_the_picture():
    generator = unet_generator(grid=FixedGrid(((0.9, 0.6, 0.3),)))
    times = paint_times(generator, 0.6, 3)
    torch.testing.assert_close(times, torch.tensor([0.6, 0.4, 0.2], dtype=torch.float64))
    noise, picture = torch.randn(2, 1, 8, 8), torch.rand(2, 1, 8, 8) * 2 - 1
    nearly = paint(unet_generator(), picture, noise, freedom=1e-4, steps=1)
    torch.testing.assert_close(nearly, picture, rtol=0, atol=2e-3)
    full = paint(unet_generator(), picture, noise, freedom=1.0, steps=2)
    torch.testing.assert_close(full, unet_generator()(noise, steps=2))
    for freedom in (0.0, 1.5, -1.0):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            paint(generator, picture, noise, freedom=freedom)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (1, 8, 8), (3, 1, 8, 9), (3, 1, 1, 1), ()])
def test_pictures_of_another_shape_are_refused(shape):
    generator, noise = unet_generator(), torch.zeros(3, 1, 8, 8)
    with pytest.raises(InputError, match=r"this generator takes \(n, 1, 8, 8\) for both"):
        paint(generator, torch.zeros(shape), noise, freedom=0.5)
    with pytest.raises(InputError, match="label 9 is out of range"):
        paint(generator, noise, noise, freedom=0.5, cond=Condition(torch.tensor([0, 1, 9])))


def test_who_can_paint():
    generator = unet_generator()
    for method in ("denoise", "consistency", "scm", "meanflow"):
        assert why_not_paintable(generator, {"method": {"name": method}}) == ""
    assert why_not_paintable(generator, None) == ""
    for method in ("regress", "dmd", "kstep", "sid"):
        reason = why_not_paintable(generator, {"method": {"name": method}})
        assert method in reason and "noise levels" in reason
    assert "allow-code" in why_not_paintable(generator, {"method": {"name": "os.path:join"}})
