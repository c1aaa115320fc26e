"""An unrolled program gives the generator's images, for any batch, traced or not."""

from dataclasses import dataclass

import pytest
import torch

from exporting import point_generator, unet_generator
from fewstep.backbones import UNetConfig
from fewstep.condition import Condition
from fewstep.export.constants import constant
from fewstep.export.program import Unrolled
from fewstep.parametrization import EDM, Eps
from fewstep.process import VE, VP
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
from fewstep.spacing import TableGrid
from fewstep.times import KarrasGrid


@dataclass(frozen=True)
class HalfStep(Step):
    """A sampler of a user's own, which calls the network at a time between those of the grid."""

    def __call__(self, context, x_t, t, s):
        end = 0.0 if s is None else s
        middle = (t + end) / 2
        x_m = x_t + (middle - t) * context.predict(x_t, t).velocity
        x_s = x_t + (end - t) * context.predict(x_m, middle).velocity
        alpha, sigma = context.at(middle, like=x_t)
        return x_s + 0 * (alpha + sigma) * x_t, None


def wanted(generator, inputs, steps):
    cond = Condition(inputs[1]) if generator.spec.classes else None
    images = generator(inputs[0], steps=steps, cond=cond, seed=0)
    return (images.clamp(-1, 1) + 1) / 2


SLOW = [Transfer(clip=1.0), Renoise(0.5), Ancestral("large"), Heun(), Multistep(), Multistep(3)]
SLOW += [UniPC(), EulerMaruyama(), StochasticMultistep(), StochasticHeun()]
STEPS = [
    Ancestral(),
    Corrector(),
    HalfStep(),
    UniPC(order=3),
    *(pytest.param(step, marks=pytest.mark.slow) for step in SLOW),
]
TINY = UNetConfig(channels=(8,), layers=1, attention=(), middle_attention=False, groups=4)


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_traced_program_is_the_generator(step):
    generator = unet_generator(step=step, config=TINY)
    program = Unrolled(generator, 3)
    inputs = program.example_inputs(2)
    rows = {0: torch.export.Dim("batch")}
    traced = torch.export.export(program, inputs, dynamic_shapes={"inputs": (rows,) * len(inputs)})
    for batch in (1, 5):
        inputs = program.example_inputs(batch)
        torch.testing.assert_close(
            traced.module()(*inputs), wanted(generator, inputs, 3), rtol=0, atol=2e-6
        )
    assert program.input_names == ["noise", "label", "fresh_noise"][: len(inputs)]


@pytest.mark.parametrize(
    ("process", "parametrization", "grid"),
    [(VE(80.0), EDM(), KarrasGrid()), (VP(), Eps(), TableGrid())],
)
def test_a_program_starts_where_the_grid_says(process, parametrization, grid):
    generator = unet_generator(process=process, parametrization=parametrization, grid=grid)
    program = Unrolled(generator, 4)
    inputs = program.example_inputs(3)
    torch.testing.assert_close(program(*inputs), wanted(generator, inputs, 4), rtol=0, atol=1e-5)


def test_guidance_flow_maps_and_points():
    guided = unet_generator().with_guidance(2.5)
    limited = unet_generator().with_guidance(2.5, interval=(0.6, 1.0))
    flow_map = unet_generator(flow_map=True, classes=0)
    for generator in (guided, limited, flow_map):
        program = Unrolled(generator, 2)
        inputs = program.example_inputs(3)
        torch.testing.assert_close(program(*inputs), wanted(generator, inputs, 2))
    assert program.input_names == ["noise"]
    points = point_generator()
    program = Unrolled(points, 2)
    (noise,) = program.example_inputs(4)
    torch.testing.assert_close(program(noise), points(noise, steps=2))
    assert program.output_name == "points"


def test_a_row_without_a_class():
    generator = unet_generator()
    program = Unrolled(generator, 1)
    noise, _ = program.example_inputs(2)
    none = torch.tensor([-1, -1])
    expected = (generator(noise, steps=1).clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(program(noise, none), expected)


def test_constants_compute_with_each_other_and_are_numbers_elsewhere():
    two = constant(torch.tensor(2.0))
    assert (two * two + 1).item() == 5.0 and (1 / torch.sqrt(two * 8)).item() == 0.25
    x = torch.ones(3)
    assert type(two * x) is torch.Tensor and (two * x - two).tolist() == [0.0, 0.0, 0.0]
    assert type(torch.exp(two)) is type(two)
