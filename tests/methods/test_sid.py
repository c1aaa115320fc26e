"""The score identity loss against its formula, finite differences and two Gaussians."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from analytic import MEAN, SPREAD, Exact, posterior_mean
from fewstep.backbones import MLPConfig
from fewstep.batching import Batches, ImageStream
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.base import Task
from fewstep.methods.fake_score import FakeConfig, student_images
from fewstep.methods.sid import Sid, SidConfig
from fewstep.noise import noise_from_seeds
from fewstep.parametrization import EDM, Clean, Velocity
from fewstep.process import VE, Flow
from fewstep.recipe import read
from fewstep.sample_spec import SampleSpec
from fewstep.times import FixedGrid

SPEC = SampleSpec((2,))
T = torch.linspace(0.1, 0.9, 6)


def network(process=None, parametrization=None, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLPConfig(width=16, depth=2).build(shape=(2,))
        nn.init.normal_(net.last.weight, std=0.3)
        return Denoiser(net, process or Flow(), parametrization or Velocity(Flow()))


TASK = Task(network(seed=1), SPEC, Generator(network(), SPEC))


def sid(student=None, teacher=None, **settings):
    teacher = Generator(teacher or network(), SPEC)
    return Sid(SidConfig(**settings), Task(student or network(seed=1), SPEC, teacher))


def batch(rows=6, step=0):
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    (only,) = Batches({"images": ImageStream(points, None)}, SPEC, batch=rows, seed=0).step(step)
    only.begin("student", 0)
    return only


def drawn(seed):
    return noise_from_seeds(range(seed, seed + 6), (2,))


def formula(method, x, eps, alpha, scale):
    """The published loss, its weight given, in the two networks' own answers."""
    a_t, s_t = method.real.process.at(T, like=x)
    x_t = a_t * x + s_t * eps
    real, fake = method.real(x_t, T).x0, method.fake.score(x_t, T).x0
    return ((real - fake) * ((real - x) - alpha * (real - fake)) * scale).mean(1)


def scale(method, x, eps):
    a_t, s_t = method.real.process.at(T, like=x)
    return 1 / (x - method.real(a_t * x + s_t * eps, T).x0).abs().mean(1, keepdim=True)


@pytest.mark.parametrize("teacher", [network, lambda: network(VE(), EDM(0.5))])
@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_the_loss_is_the_published_formula(teacher, alpha):
    method = sid(teacher=teacher(), alpha=alpha)
    method.fake.score = teacher()
    with torch.no_grad():
        method.fake.score.backbone.last.bias.add_(0.5)
    x, eps = drawn(0), drawn(10)
    wanted = formula(method, x, eps, alpha, scale(method, x, eps))
    torch.testing.assert_close(method.identity_loss(x, eps, T, None), wanted, rtol=1e-4, atol=1e-5)


def test_the_gradient_goes_through_both_networks_and_x_t():
    """As finite differences have it in float64, the weight held."""
    method = sid().double()
    method.fake.score = network(seed=5).double()
    x, eps = drawn(0).double().requires_grad_(), drawn(10).double()
    method.identity_loss(x, eps, T, None).sum().backward()
    held, found = scale(method, x, eps).detach(), torch.zeros_like(x)
    with torch.no_grad():
        for i in range(2):
            hair = torch.zeros_like(x)
            hair[:, i] = 1e-5
            ahead = formula(method, x + hair, eps, 1.2, held)
            found[:, i] = (ahead - formula(method, x - hair, eps, 1.2, held)) / 2e-5
    torch.testing.assert_close(x.grad, found, rtol=1e-6, atol=1e-8)


def test_where_the_fake_is_the_teacher_there_is_neither_loss_nor_gradient():
    method = sid()
    loss = method.student_loss(batch()).value
    loss.backward()
    assert loss == 0
    gradients = [p.grad for p in method.student.parameters() if p.grad is not None]
    assert gradients and max(g.abs().max() for g in gradients) < 1e-6


class Gaussian(Exact):
    """Exact for data of another mean."""

    def forward(self, x, level, *, level_s=None, cond=None):
        alpha, sigma, x_t = self.native(x, level.reshape(-1, 1))
        x0 = posterior_mean(x_t, alpha, sigma, mean=self.mean)
        return (x_t - alpha * x0) / sigma - x0


class Moved(Exact):
    """A student of one number: noise of the right spread, moved to a mean."""

    def __init__(self, mean):
        super().__init__(Clean(Flow()))
        self.mean = nn.Parameter(torch.tensor(mean))

    def forward(self, x, level, *, level_s=None, cond=None):
        return self.mean + SPREAD * x


def gaussians(mean, alpha=1.2):
    """A student at `mean`, its exact fake score, and the exact score of data around MEAN."""
    student = Denoiser(Moved(mean), Flow(), Clean(Flow()))
    method = sid(student, Denoiser(Exact(Velocity(Flow())), Flow(), Velocity(Flow())), alpha=alpha)
    method.fake.score = Denoiser(Gaussian(Velocity(Flow())), Flow(), Velocity(Flow()))
    method.fake.score.backbone.mean = mean
    return method


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_of_two_gaussians_the_gradient_is_known_whatever_a_is(alpha):
    """f − m is (MEAN − mean)·h, h = what the noise hides; it is the same at each x_t, so that only
    f − x has a gradient, −h: the loss's is −(MEAN − mean)·h²/mean|x − f|, towards MEAN."""
    method = gaussians(-1.0, alpha)
    method.student_loss(batch(500)).value.backward()
    given = batch(500)
    given.shared_rand()
    x = -1.0 + SPREAD * given.noise()
    t = method.config.density.times(given.rand(), method.real)[:, None]
    hidden = t**2 / ((1 - t) ** 2 * SPREAD**2 + t**2)
    real = posterior_mean((1 - t) * x + t * given.randn_like(x), 1 - t, t)
    weight = 1 / (x - real).abs().mean(1, keepdim=True)
    wanted = -((MEAN + 1.0) * hidden**2 * weight).mean()
    torch.testing.assert_close(method.student.backbone.mean.grad, wanted, rtol=1e-3, atol=1e-5)


def test_the_students_mean_comes_to_the_datas():
    mean = -1.0
    for step in range(60):
        method = gaussians(mean)
        method.student_loss(batch(64, step)).value.backward()
        mean -= 0.3 * float(method.student.backbone.mean.grad)
    assert mean == pytest.approx(MEAN, abs=0.02)


def test_only_the_student_collects_in_its_turn_and_only_the_fake_in_its_own():
    method = sid(adversarial=AdversarialConfig(weight=1.0))
    method.fake.score = network(seed=5)
    groups = {"student": method.student, "fake": method.fake, "teacher": method.teacher}
    for player, loss in (("student", method.student_loss), ("fake", method.fake_loss)):
        method.requires_grad_(False)  # as the trainer does
        groups[player].requires_grad_(True)
        loss(batch()).value.backward()
        for name, module in groups.items():
            got = any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
            assert got == (name == player)
        method.zero_grad()


def test_the_adversarial_term_has_its_weight_and_reads_images():
    method = sid(adversarial=AdversarialConfig(weight=0.5))
    loss = method.student_loss(batch())
    numbers = loss.numbers
    torch.testing.assert_close(loss.value, numbers["identity"] + 0.5 * numbers["generator_loss"])
    assert method.reads == {"images"} and sid().reads == set()


def test_the_adversarial_term_is_at_the_same_noise_and_weighs_images_alike():
    """The logit of just the x_t whose scores are compared; 1/mean|x − f| is not in it."""
    method, only = sid(adversarial=AdversarialConfig(weight=0.5)), batch()
    found = method.student_loss(only).numbers["generator_loss"]
    again = batch()
    x, cond = student_images(method.student, method.times, again)
    t, eps = method.config.density.times(again.rand(), method.real), again.randn_like(x)
    logits = method.fake.logits(x, eps, t, cond)
    torch.testing.assert_close(found, torch.log(1 + torch.exp(-logits)).mean())


def test_the_weights_of_cifar10_sida_are_the_authors_in_our_units():
    """They sum over 3,072 numbers, and multiply the head's loss, halved, by EDM's mean weight."""
    head = read("cifar10-sida").method
    assert head.adversarial.head_weight == pytest.approx(
        (1 / 0.5**2 + math.exp(2 * 1.2 + 2 * 1.2**2)) / 2 / 3072, rel=0.02
    )


def test_the_student_waits_for_the_fake_and_the_head():
    """As in SiDA: 100,000 images of the fake alone, 100,000 more without the adversarial loss."""
    method = sid(fake=FakeConfig(warmup=0.25), adversarial=AdversarialConfig(weight=0.5, start=4))
    method = Sid(method.config, replace(TASK, steps=8))
    players = [[turn.player for turn in method.turns(step)] for step in range(3)]
    assert players == [["fake"], ["fake"], ["student", "fake"]]
    names = [set(method.student_loss(batch(step=step)).numbers) for step in (3, 4)]
    assert names == [set(), {"identity", "generator_loss"}]
    assert method.reads == {"images"}


def test_a_student_that_would_never_train_is_refused():
    for warmup, steps in ((8, 8), (9, 8)):
        with pytest.raises(InputError, match=f"{warmup} steps of a training of {steps}"):
            Sid(SidConfig(fake=FakeConfig(warmup=warmup)), replace(TASK, steps=steps))


@pytest.mark.parametrize(("weight", "start", "count"), [(0.5, 8, 1), (0.5, 7, 0), (0.0, 8, 0)])
def test_an_adversarial_loss_that_never_starts_is_warned_of(weight, start, count):
    adversarial = AdversarialConfig(weight=weight, start=start)
    method = Sid(SidConfig(adversarial=adversarial), replace(TASK, steps=8))
    assert [f"start is {start} steps" in each for each in method.warnings()] == [True] * count


def test_it_starts_at_the_chosen_noise_level_in_training_and_sampling():
    """2.5 of 80, as published for EDM's networks."""
    method = sid(network(VE(), EDM(0.5)), grid=FixedGrid(((0.03125,),)))
    seen = []
    method.student.backbone.register_forward_pre_hook(lambda _, args: seen.append(args))
    method.student_loss(batch())
    method.generator()(drawn(0))
    given = batch()
    given.shared_rand()
    c_in = 2.5 / (2.5**2 + 0.5**2) ** 0.5
    for (x, level), noise in zip(seen, (given.noise(), drawn(0)), strict=True):
        torch.testing.assert_close(x, c_in * noise)
        assert float(level[0]) == pytest.approx(250 * 0.25 * math.log(2.5), rel=1e-5)


def test_a_missing_teacher_is_told():
    with pytest.raises(InputError, match="teacher"):
        Sid(SidConfig(), Task(network(), SPEC))
