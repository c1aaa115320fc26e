import json

import pytest
import torch

from analytic import exact
from fewstep.condition import Condition
from fewstep.description import from_description
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.parametrization import EDM, Velocity
from fewstep.process import VE, VP, Flow
from fewstep.sample_spec import SampleSpec
from fewstep.sampler_choices import convert_step, with_sampler_choices
from fewstep.sampling import (
    Ancestral,
    Corrector,
    Heun,
    Multistep,
    Renoise,
    StochasticMultistep,
    Transfer,
    UniPC,
    sample,
)
from fewstep.spacing import TableGrid
from fewstep.times import FixedGrid, KarrasGrid, LogSNRGrid, UniformGrid


def test_it_samples_as_sample_does():
    model, noise = exact(VE(80.0), EDM()), torch.randn(5, 2)
    generator = Generator(model, SampleSpec((2,)), grid=KarrasGrid(), step=Heun())
    wanted = sample(model, noise, KarrasGrid()(6, model), step=Heun())
    assert torch.equal(generator(noise, steps=6), wanted)
    *states, image = generator.path(noise, steps=6)
    assert len(states) == 6 and torch.equal(image, wanted)
    assert torch.equal(
        generator.with_sampler(grid=UniformGrid())(noise, steps=2),
        sample(model, noise, UniformGrid()(2, model), step=Heun()),
    )


def test_a_count_it_was_not_made_for_takes_the_nearest_and_says_so():
    model, noise = exact(Flow(), Velocity()), torch.randn(3, 2)
    generator = Generator(model, SampleSpec((2,)), grid=FixedGrid(((1.0,), (1.0, 0.7, 0.4, 0.2))))
    with pytest.warns(UserWarning, match="supports 1, 4 steps, not 3; it now takes 4"):
        images = generator(noise, steps=3)
    assert torch.equal(images, generator(noise, steps=4))


def test_what_it_cannot_make_is_refused():
    model = exact(Flow(), Velocity())
    plain, labelled = Generator(model, SampleSpec((2,))), Generator(model, SampleSpec((2,), 3))
    with pytest.raises(InputError, match="0 steps"):
        plain(torch.randn(1, 2), steps=0)
    with pytest.raises(InputError, match=r"takes \(n, 2\)"):
        plain(torch.randn(1, 3))
    with pytest.raises(InputError, match="unconditional"):
        plain(torch.randn(1, 2), cond=Condition(torch.tensor([0])))
    for label in (3, -2):
        with pytest.raises(InputError, match=f"label {label} is out of range.*0 to 2"):
            labelled(torch.randn(1, 2), cond=Condition(torch.tensor([label])))
    with pytest.raises(InputError, match=r"takes \(n, 2\)"):
        next(plain.path(torch.randn(1, 3), steps=2))
    labelled(torch.randn(2, 2), cond=Condition(torch.tensor([-1, 2])))


def test_draws_follow_the_seeds_of_the_rows():
    generator = Generator(exact(Flow(), Velocity()), SampleSpec((2,)), step=Renoise())
    noise = torch.randn(4, 2)
    whole = generator(noise, steps=3, seed=[5, 6, 7, 8])
    assert torch.equal(whole[2:], generator(noise[2:], steps=3, seed=7))


def test_description_round_trip():
    from fewstep.backbones import MLPConfig
    from fewstep.denoiser import Denoiser
    from fewstep.parametrization import Eps
    from fewstep.process import LinearBetas

    table = LinearBetas(steps=20)
    model = Denoiser(MLPConfig(width=8, depth=1).build(shape=(2,)), table, Eps(table))
    made = Generator(model, SampleSpec((2,)), grid=FixedGrid(((1.0,),)), step=Renoise())
    read = from_description(made.describe())
    assert read.describe() == made.describe() and "span" not in made.describe()
    read.load_state_dict(made.state_dict())
    noise = torch.randn(3, 2)
    assert torch.equal(read(noise), made(noise))


def test_a_span_is_described_where_it_is_not_the_natural_one():
    from fewstep.backbones import MLPConfig
    from fewstep.denoiser import Denoiser

    backbone = MLPConfig(width=8, depth=1).build(shape=(2,))
    span = (0.1, 80 / 81)
    generator = Generator(Denoiser(backbone, Flow(), Velocity(), span=span), SampleSpec((2,)))
    description = json.loads(json.dumps(generator.describe()))
    assert from_description(description).denoiser.span == span
    assert from_description(description).describe() == generator.describe()
    description["span"] = [0.9, 0.1]
    with pytest.raises(InputError, match="low < high"):
        from_description(description)


def test_a_converted_step_keeps_the_settings_that_it_has_too():
    clipped = Ancestral(clip=1.0)
    assert convert_step(clipped, "transfer") == Transfer(clip=1.0)
    assert convert_step(clipped, "ancestral") == clipped
    assert convert_step(clipped, "heun") == Heun(clip=1.0)
    assert convert_step(clipped, "multistep") == Multistep(clip=1.0)
    assert convert_step(Corrector(clip=0.5), "renoise") == Renoise(clip=0.5)
    assert convert_step(clipped, "heun", clip=0.5) == Heun(clip=0.5)
    # a setting of the same name, but with a value that the other does not have
    with pytest.warns(match="multistep ignores order = 1 of stochastic-multistep"):
        assert convert_step(StochasticMultistep(order=1, clip=1.0), "multistep") == Multistep(
            clip=1.0
        )
    with pytest.raises(InputError, match="unknown sampler 'heum'; did you mean heun"):
        convert_step(clipped, "heum")
    with pytest.raises(InputError, match="os:path is not a sampler; choose one of .*heun"):
        convert_step(clipped, "os:path")
    with pytest.raises(InputError, match="clip is -1; it must be positive"):
        convert_step(clipped, "heun", clip=-1.0)
    with pytest.raises(InputError, match="the sampler ring cannot clip images: leave out the clip"):
        convert_step(Heun(), "ring", clip=1.0)


def test_a_sampler_and_a_grid_are_chosen_with_their_settings():
    generator = Generator(exact(VP(), Velocity()), SampleSpec((2,)), step=Heun(clip=1.0))

    def choose(sampler=None, grid=None):
        return with_sampler_choices(generator, None, sampler=sampler, grid=grid)

    assert choose() is generator
    assert choose('{name="multistep", order=3}').step == Multistep(order=3, clip=1.0)
    assert choose('{name = "unipc", clip = 2.0}').step == UniPC(clip=2.0)
    assert choose(grid="log-snr").grid == LogSNRGrid()
    grid = choose("unipc", '{name="table", spacing="trailing"}').grid
    assert grid == TableGrid(spacing="trailing") and generator.grid == UniformGrid()
    for sampler, grid, message in (
        ('{name="unipc", ordr=3}', None, "--sampler.ordr; did you mean --sampler.order?"),
        ('{name="unipc", order=4}', None, "--sampler.order is 4; it must be one of 2, 3"),
        ("{order=3}", None, "--sampler {order=3} has no name"),
        ("{name=unipc}", None, "--sampler {name=unipc}: it is not valid TOML"),
        ('{name="unipc"}\nx=1', None, "several lines"),
        (None, "uniformly", "unknown grid 'uniformly'; did you mean uniform"),
        (None, '{name="karras", rho=-1}', "--grid.rho is -1; it must be a number above 0"),
    ):
        with pytest.raises(InputError) as error:
            choose(sampler, grid)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("coupling", [{"name": "minibatch-ot"}, "semidiscrete-ot"])
@pytest.mark.parametrize(
    "sampler", ["ancestral", "euler-maruyama", "stochastic-heun", "renoise", "corrector"]
)
def test_noise_of_a_coupling_cannot_be_renewed(coupling, sampler):
    generator = Generator(exact(Flow(), Velocity()), SampleSpec((2,)))
    recipe = {"method": {"name": "denoise", "coupling": coupling}}
    with pytest.raises(InputError) as error:
        with_sampler_choices(generator, recipe, sampler=sampler, grid=None)
    assert f"the sampler {sampler} adds some: choose transfer, heun" in str(error.value)
    for table, choice in (
        (recipe, "unipc"),
        (recipe, None),
        ({"method": {"name": "denoise", "coupling": {"name": "independent"}}}, sampler),
        ({"method": {"name": "regress"}}, sampler),
        (None, sampler),
    ):
        with_sampler_choices(generator, table, sampler=choice, grid="uniform")


@pytest.mark.parametrize(
    ("step", "name", "message"),
    [
        (
            Ancestral(eta=0.5, variance="large"),
            "heun",
            "the sampler heun ignores variance = 'large', eta = 0.5 of ancestral, which it "
            "replaces",
        ),
        (
            Renoise(share=0.5),
            "transfer",
            "the sampler transfer ignores share = 0.5 of renoise, which it replaces",
        ),
        (
            Corrector(snr=0.1),
            "ancestral",
            "the sampler ancestral ignores snr = 0.1 of corrector, which it replaces",
        ),
        (
            Heun(clip=1.0),
            "ring",
            "the sampler ring ignores clip = 1.0 of heun, which it replaces",
        ),
    ],
)
def test_a_converted_step_warns_of_settings_that_it_lacks(step, name, message):
    with pytest.warns(UserWarning) as warned:
        convert_step(step, name)
    assert [str(warning.message) for warning in warned] == [message]
