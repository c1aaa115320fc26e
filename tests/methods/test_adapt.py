"""Adaptation to another parametrization, and the check of where sampling starts."""

import math
import warnings
from copy import deepcopy

import pytest
import torch

import analytic
import toy
from fewstep import plugins
from fewstep.batching import Batches, ImageStream
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.adapt import Adapt, AdaptConfig
from fewstep.methods.base import Task
from fewstep.methods.checks import check_start
from fewstep.optimizers import FitConfig
from fewstep.parametrization import EDM, Clean, Eps, Mixed, V, Velocity
from fewstep.process import VP, Cosine, Flow, LinearBetas
from fewstep.sample_spec import SampleSpec
from fewstep.times import FixedGrid, Uniform
from fewstep.trainer import Training

DDPM = LinearBetas()


def test_the_error_factor_is_that_of_the_image():
    """157 at the end of DDPM's table for eps; sigma for v; 1 for x0; below σ_d for EDM."""
    alpha, sigma = (
        f(torch.tensor(1.0, dtype=torch.float64)).item() for f in (DDPM.alpha, DDPM.sigma)
    )

    def factor(process, parametrization, t=1.0):
        return Denoiser(toy.network(), process, parametrization).error_factor(t)

    assert factor(DDPM, Eps()) == pytest.approx(sigma / alpha) == pytest.approx(157, abs=1)
    assert factor(DDPM, V()) == pytest.approx(sigma)
    assert factor(DDPM, Clean()) == 1
    assert factor(Flow(), Velocity()) == 1
    assert factor(Flow(), Velocity(), 0.25) == 0.25
    assert factor(VP(), EDM(0.5), 1.0) <= 0.5
    assert factor(Cosine(), Eps()) == math.inf
    # a change of the output by one changes the image by the factor
    x, model = torch.zeros(1, 2), Denoiser(toy.network(), DDPM, Eps())
    one, none = (model.interpret(x, 0.7, torch.full((1, 2), value)).x0 for value in (1.0, 0.0))
    assert (one - none).abs().max().item() == pytest.approx(model.error_factor(0.7), rel=1e-5)


# networks and settings that are refused, by method: those that ask for an image at the first time
STUDENTS = {"circuit": toy.circuit, "residual_sum": toy.residuals}
ELSEWHERE = ("autoencode", "denoise", "circuit", "residual_sum")
EVERYWHERE = [n for n in plugins.names("method") if n not in ELSEWHERE]


def build(name, start=None, parametrization=None):
    student = Denoiser(toy.network(), DDPM, parametrization or Eps())
    student = student.replace(span=(student.span[0], start or student.span[1]))
    teacher = Generator(Denoiser(toy.network(), DDPM, Eps()), toy.SPEC)
    kind = plugins.resolve("method", name)
    settings = {"progressive": {"first": 2}}.get(name, {})
    return kind(kind.Config(**settings), Task(student, toy.SPEC, teacher))


@pytest.mark.parametrize("name", EVERYWHERE)
def test_an_eps_student_from_pure_noise_is_refused_by_every_method(name, pairs):
    with pytest.raises(InputError, match="157 times as large in the image") as caught:
        method = build(name)
        Training(method, toy.batches(method, pairs, batch=4), FitConfig(steps=3, batch=4))
    message = str(caught.value)
    for remedy in (
        'student.parametrization="velocity"',
        "student.start={snr=0.25}",
        "student.init=RUN",
    ):
        assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize("name", EVERYWHERE)
@pytest.mark.parametrize(
    "student", [{"start": 0.4}, {"parametrization": V()}, {"parametrization": Velocity()}]
)
def test_its_remedies_train_in_every_method(name, student, pairs):
    method = build(name, **student)
    batches = toy.batches(method, pairs, batch=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training = Training(method, batches, FitConfig(steps=3, batch=4))
    from_noise = name in ("regress", "kstep", "dmd", "sid")
    lines = [str(warning.message) for warning in caught]
    if "start" in student and not from_noise:
        assert ["start from noise alone there" in line for line in lines] == [True]
        assert "(signal-to-noise ratio 0.24)" in lines[0]
    else:
        assert not lines
    for progress in training:
        assert all(math.isfinite(value) for value in progress.numbers.values())
    generator = training.generator()
    count = min(generator.grid.counts or (2,))
    start = 0.4 if "start" in student else 1.0
    ratio = generator.denoiser.process.ratio(generator.grid(count, generator.denoiser)[:1])
    expected = DDPM.ratio(torch.tensor([start], dtype=torch.float64))
    torch.testing.assert_close(ratio, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["consistency", "scm", "meanflow", "reflow"])
def test_a_grid_that_starts_later_does_not_help_a_method_that_trains_at_all_times(name):
    kind = plugins.resolve("method", name)
    teacher = Generator(Denoiser(toy.network(), DDPM, Eps()), toy.SPEC)
    inputs = Mixed(inputs=EDM(), outputs=Eps(DDPM))
    for parametrization, word in ((Eps(), "157 times"), (inputs, "80 times")):
        student = Denoiser(toy.network(), DDPM, parametrization)
        method = kind(kind.Config(grid=FixedGrid(((0.1,),))), Task(student, toy.SPEC, teacher))
        message = f'predicts "eps", .*{word} as large .* where the training times end'
        with pytest.raises(InputError, match=message):
            check_start(method)


@pytest.mark.parametrize("name", ["denoise", "circuit"])
def test_losses_on_the_output_need_no_image(name):
    student = toy.circuit() if name == "circuit" else toy.fresh()
    spec = toy.PIXELS if name == "circuit" else toy.SPEC
    eps = Denoiser(student.backbone, DDPM, Eps())
    kind = plugins.resolve("method", name)
    check_start(kind(kind.Config(), Task(eps, spec)))


SPEC = SampleSpec((2,))


def adapt(parametrization, *, trust, points, steps, original=None):
    """An MLP that copies the exact eps network's job, adapted on `points`."""
    torch.manual_seed(0)
    network = toy.network()
    student = Denoiser(network, DDPM, parametrization)
    original = Generator(original or analytic.exact(DDPM, Eps(DDPM), (2,)), SPEC)
    method = Adapt(AdaptConfig(trust=trust), Task(student, SPEC, original))
    batches = Batches({"images": ImageStream(points, None)}, SPEC, batch=256, seed=0)
    config = FitConfig(steps=steps, batch=256, lr=4e-3, schedule="cosine")
    for _ in Training(method, batches, config):
        pass
    return student


def test_where_the_original_is_trusted_its_mean_is_the_target():
    """The exact network has no loss where its own prediction is the target."""
    original = analytic.exact(DDPM, Eps(DDPM), (2,))
    same = analytic.exact(DDPM, V(DDPM), (2,))
    points = analytic.MEAN + analytic.SPREAD * torch.randn(4096, 2)
    losses = {}
    for trust in (0.0, 3.0, 1e9):
        method = Adapt(AdaptConfig(trust=trust), Task(same, SPEC, Generator(original, SPEC)))
        (batch,) = Batches({"images": ImageStream(points, None)}, SPEC, batch=4096, seed=0).step(0)
        batch.begin("adapt", 0)
        losses[trust] = method.adapt_loss(batch).value.item()
    assert losses[1e9] < 1e-3  # v of the exact eps, up to float32 where sigma/alpha is 157
    assert losses[0.0] > 2 * losses[3.0] > 2 * losses[1e9]


@pytest.mark.parametrize(
    "parametrization",
    [
        Velocity(DDPM),
        EDM(0.5, 0.01, 157.0),
        *(pytest.param(kind(DDPM), marks=pytest.mark.slow) for kind in (V, Clean)),
    ],
)
def test_an_adapted_student_predicts_the_exact_image(parametrization):
    points = analytic.MEAN + analytic.SPREAD * torch.randn(20_000, 2)
    student = adapt(parametrization, trust=3.0, points=points, steps=300)
    exact = analytic.exact(DDPM, Eps(DDPM), (2,))
    for t in (0.3, 0.9, 1.0):
        x_t = DDPM.add_noise(points[:512], torch.randn(512, 2), t)
        error = (student(x_t, t).x0 - exact(x_t, t).x0).square().mean().sqrt()
        assert error < 0.1, (t, error)


def test_an_original_that_predicts_the_image_is_not_trusted_where_there_is_little_noise():
    """There its noise, (x_t − alpha·x0)/sigma, has its error times alpha/sigma."""
    torch.manual_seed(0)
    original = Generator(Denoiser(toy.network(), Flow(), Clean()), SPEC)
    student = Denoiser(toy.network(), Flow(), Velocity())
    points = torch.randn(64, 2)
    for low, high in ((0.0, 1e-6), (0.1, 0.2)):
        density = Uniform(low, high)
        method = Adapt(AdaptConfig(density=density), Task(student, SPEC, original))
        (batch,) = Batches({"images": ImageStream(points, None)}, SPEC, batch=64, seed=0).step(0)
        batch.begin("adapt", 0)
        assert method.adapt_loss(batch).value.item() < 20, (low, high)
    # alpha/sigma is 3 at t = 0.25
    assert method.first_trusted == pytest.approx(0.25, abs=0.002) and method.last_trusted == 1


def test_the_original_is_not_changed():
    original = Denoiser(toy.network(), DDPM, Eps())
    before = deepcopy(original.state_dict())
    adapt(V(DDPM), trust=3.0, points=torch.randn(512, 2), steps=3, original=original)
    assert all(value.equal(before[name]) for name, value in original.state_dict().items())
