"""The gradient that moves the student's images, against closed forms, and who collects any."""

import pytest
import torch
from torch import nn

from analytic import MEAN, SPREAD, Exact, posterior_mean
from fewstep.backbones import MLPConfig
from fewstep.batching import Batches, ImageStream
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import SquaredError
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.base import Task
from fewstep.methods.batch import PairBatch
from fewstep.methods.dmd import Dmd, DmdConfig
from fewstep.methods.fake_score import FakeConfig
from fewstep.parametrization import EDM, Clean, Velocity
from fewstep.process import VE, Flow
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Renoise
from fewstep.times import FixedGrid

SPEC = SampleSpec((2,), classes=3)
ADVERSARIAL = AdversarialConfig(weight=1.0)


class Images(Exact):
    """A student whose images are its parameters; it keeps what it was asked."""

    def __init__(self, rows):
        super().__init__(Clean(Flow()))
        self.x = nn.Parameter(torch.randn(rows, 2, generator=torch.Generator().manual_seed(2)))
        self.asked = []

    def forward(self, x, level, *, level_s=None, cond=None):
        self.asked.append((x, level, cond))
        return self.x


class Gaussian(Exact):
    """Exact for data of another mean."""

    mean = -1.0

    def forward(self, x, level, *, level_s=None, cond=None):
        alpha, sigma, x_t = self.native(x, level.reshape(-1, 1))
        x0 = posterior_mean(x_t, alpha, sigma, mean=self.mean)
        return (x_t - alpha * x0) / sigma - x0


def images(rows):
    return Denoiser(Images(rows), Flow(), Clean(Flow()))


def network(process=None, parametrization=None, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLPConfig(width=16, depth=2).build(shape=(2,), classes=3)
        nn.init.normal_(net.last.weight, std=0.3)
        return Denoiser(net, process or Flow(), parametrization or Velocity(Flow()))


def dmd(student, teacher=None, *, guidance=1.0, **settings):
    teacher = Generator(teacher or network(), SPEC)
    teacher = teacher if guidance == 1 else teacher.with_guidance(guidance)
    return Dmd(DmdConfig(**settings), Task(student, SPEC, teacher))


class Recorded:
    """Pairs whose labels are known: of class 2 all."""

    def __len__(self):
        return 100

    def rows(self, index, coin, device):
        noise = torch.randn(len(index), 2, generator=torch.Generator().manual_seed(7))
        return PairBatch(noise, 3 * noise, Condition(torch.full((len(index),), 2)))


def batch(rows=5, player="student"):
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    streams = {"images": ImageStream(points, torch.arange(50) % 3), "pairs": Recorded()}
    (only,) = Batches(streams, SPEC, batch=rows, seed=0).step(0)
    only.begin(player, 0)
    return only


def add_noise(method, x):
    """(x_t, t, cond) of the student's turn, from the batch's draws in their order."""
    given = batch(len(x))
    cond = given.cond()
    given.shared_rand(), given.noise()
    t = method.config.density.times(given.rand(), method.real)
    return method.real.process.add_noise(x, given.randn_like(x), t), t, cond


@pytest.mark.parametrize("teacher", [network, lambda: network(VE(), EDM(0.5))])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_gradient_is_the_scores_difference_over_the_mean_error(teacher, guidance):
    """(m_f − m_r)/(mean|x − m_r|·elements), the teacher alone guided."""
    method = dmd(images(5), teacher(), guidance=guidance)
    method.fake.score = teacher()
    with torch.no_grad():
        method.fake.score.backbone.last.bias.add_(0.5)
    x = method.student.backbone.x
    method.student_loss(batch()).value.backward()
    x_t, t, cond = add_noise(method, x.detach())
    plain = teacher()
    fake = method.fake.score(x_t, t, cond=cond).x0
    real, free = plain(x_t, t, cond=cond).x0, plain(x_t, t, cond=cond.null()).x0
    real = guidance * real + (1 - guidance) * free
    weight = 1 / (x - real).abs().mean(1, keepdim=True)
    torch.testing.assert_close(x.grad, (fake - real) * weight / x.numel(), rtol=1e-4, atol=1e-6)
    assert x.grad.abs().min() > 0


def test_where_the_fake_is_the_teacher_there_is_no_gradient():
    student = images(5)
    dmd(student).student_loss(batch()).value.backward()
    assert (student.backbone.x.grad == 0).all()


def test_of_two_gaussians_the_gradient_points_from_fake_to_real():
    """m_f − m_r is the means' difference times what the noise hides of it, wherever x_t is."""
    student = images(50)
    method = dmd(student, Denoiser(Exact(Velocity(Flow())), Flow(), Velocity(Flow())))
    method.fake.score = Denoiser(Gaussian(Velocity(Flow())), Flow(), Velocity(Flow()))
    method.student_loss(batch(50)).value.backward()
    x = student.backbone.x.detach()
    x_t, t, _ = add_noise(method, x)
    alpha, sigma = (1 - t)[:, None], t[:, None]
    hidden = sigma**2 / (alpha**2 * SPREAD**2 + sigma**2)
    real = posterior_mean(x_t, alpha, sigma)
    wanted = (Gaussian.mean - MEAN) * hidden / (x - real).abs().mean(1, keepdim=True) / x.numel()
    torch.testing.assert_close(student.backbone.x.grad, wanted.expand_as(x), rtol=1e-3, atol=1e-6)
    assert (-student.backbone.x.grad * (MEAN - Gaussian.mean) > 0).all()


def moved(method):
    """Who has a non-zero gradient, where everybody may collect."""
    groups = {"student": method.student, "score": method.fake.score, "teacher": method.teacher}
    if method.fake.head:
        groups["head"] = method.fake.head
    told = {
        name
        for name, module in groups.items()
        for p in module.parameters()
        if p.grad is not None and p.grad.abs().max() > 0
    }
    method.zero_grad()
    return told


def test_the_scores_collect_nothing_in_the_students_turn():
    method = dmd(network(seed=1), regression=1.0).requires_grad_(True)
    method.fake.score = network(seed=4)
    method.student_loss(batch()).value.backward()
    assert moved(method) == {"student"}


def test_only_score_and_head_collect_in_the_fakes_turn():
    """On the images that the student's turn left, and on new ones."""
    method = dmd(network(seed=1), adversarial=ADVERSARIAL).requires_grad_(True)
    after = batch()
    method.student_loss(after)
    for given in (after, batch(player="fake")):
        method.fake_loss(given).value.backward()
        assert moved(method) == {"score", "head"}


def test_the_adversarial_loss_moves_the_student_where_the_scores_agree():
    student = images(5)
    method = dmd(student, adversarial=ADVERSARIAL)
    loss = method.student_loss(batch())
    loss.value.backward()
    assert student.backbone.x.grad.abs().max() > 0
    torch.testing.assert_close(loss.value, loss.numbers["generator_loss"])


@pytest.mark.parametrize("start", [1.0, 0.4])
def test_regression_asks_for_the_pairs_own_classes_from_the_samplers_start(start):
    student = images(5)
    grid = FixedGrid(((start,),))
    method = dmd(student, regression=0.25, loss=SquaredError(), grid=grid)
    loss = method.student_loss(given := batch())
    (_, _, drawn), (x, level, cond) = student.backbone.asked
    torch.testing.assert_close(x, start * given.pairs.noise)
    assert (level == 1000 * start).all() and (cond.label == 2).all() and (drawn.label != 2).any()
    error = (student.backbone.x - given.pairs.x0).square().mean()
    torch.testing.assert_close(loss.value, 0.25 * error)  # the scores agree: there is no more


def test_the_fake_learns_from_the_students_images_of_the_same_step():
    """With their classes, and without asking the student again."""
    student, given, other = images(5), batch(), batch(player="fake")
    method = dmd(student)
    method.student_loss(given)
    given.begin("fake", 0)
    found = method.fake_loss(given).value
    ((_, _, cond),) = student.backbone.asked
    wanted = method.fake.loss(other, student.backbone.x, cond).value
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_the_student_takes_every_nth_turn_and_goes_first():
    players = [[turn.player for turn in dmd(images(5), every=3).turns(step)] for step in range(5)]
    assert players == [["student", "fake"], ["fake"], ["fake"], ["student", "fake"], ["fake"]]


def test_the_fake_trains_alone_at_first():
    method = dmd(images(5), every=2, fake=FakeConfig(warmup=3))
    players = [[turn.player for turn in method.turns(step)] for step in range(6)]
    assert players == [["fake"]] * 3 + [["student", "fake"], ["fake"], ["student", "fake"]]


def test_the_adversarial_loss_starts_late():
    method = dmd(images(5), adversarial=AdversarialConfig(weight=1.0, start=1))
    numbers = method.student_loss(batch()).numbers
    assert "generator_loss" not in numbers and "head_loss" in method.fake_loss(batch()).numbers


def test_what_is_read_is_what_the_settings_need():
    assert dmd(images(5)).reads == set()
    assert dmd(images(5), regression=0.1).reads == {"pairs"}
    assert dmd(network(), adversarial=ADVERSARIAL, regression=0.1).reads == {"pairs", "images"}


def test_it_is_sampled_at_the_times_it_was_trained_at_with_fresh_noise_between():
    made = dmd(network(), steps=4).generator()
    assert made.grid == FixedGrid(((1.0, 0.75, 0.5, 0.25),)) and made.step == Renoise()


def test_wrong_settings_are_refused():
    for settings in ({"every": 0}, {"regression": -1.0}):
        with pytest.raises(InputError, match="method.(every|regression) is"):
            dmd(images(5), **settings)
    with pytest.raises(InputError, match="no times for the 2 steps"):
        dmd(images(5), steps=2, grid=FixedGrid(((0.4,),)))
    with pytest.raises(InputError, match="teacher"):
        Dmd(DmdConfig(), Task(images(5), SPEC))
