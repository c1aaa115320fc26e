"""The fake score's loss in the published weights, its head, and the images that it is shown."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.backbones import MLPConfig, UNetConfig, set_dropout
from fewstep.batching import Batches, ImageStream
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.adversarial import AdversarialConfig
from fewstep.methods.fake_score import (
    FakeConfig,
    FakeScore,
    cached_images,
    rollout,
    row_scale,
    student_images,
)
from fewstep.parametrization import EDM, Eps, Velocity
from fewstep.process import VE, VP, Flow
from fewstep.sample_spec import SampleSpec

SPEC = SampleSpec((2,), classes=3)


IMAGES = SampleSpec((1, 4, 4))
UNET = UNetConfig(channels=(8,), layers=1, attention=(), middle_attention=False, groups=4)


def network(process=None, parametrization=None, seed=0):
    """A small class-conditional network that says something: its last layer is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLPConfig(width=16, depth=2).build(shape=(2,), classes=3)
        nn.init.normal_(net.last.weight, std=0.3)
        return Denoiser(net, process or Flow(), parametrization or Velocity(Flow()))


def fake(teacher=None, **settings):
    return FakeScore(teacher or network(), SPEC, FakeConfig(), AdversarialConfig(**settings))


def dropping(dropout):
    """A denoiser of images whose network has dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = replace(UNET, dropout=dropout).build(shape=IMAGES.shape)
        nn.init.normal_(net.conv_out.weight, std=0.3)
    return Denoiser(net, Flow(), Velocity(Flow()))


def batch(rows=6, player="fake", step=0):
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    streams = {"images": ImageStream(points, torch.arange(50) % 3)}
    (only,) = Batches(streams, SPEC, batch=rows, seed=0).step(step)
    only.begin(player, 0)
    return only


class Recorded(nn.Module):
    """A backbone that keeps what it was asked: inputs and labels."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config, self.level_scale = inner, inner.config, inner.level_scale
        self.asked = []

    def forward(self, x, level, *, level_s=None, cond=None):
        self.asked.append((x, level, cond and cond.label, torch.is_grad_enabled()))
        return self.inner(x, level, cond=cond)

    def features(self, x, level, *, cond=None):
        self.asked.append((x, level, cond and cond.label, torch.is_grad_enabled()))
        return self.inner.features(x, level, cond=cond)


@pytest.mark.parametrize(
    ("process", "parametrization", "floor"),
    [(VP(), Eps(VP()), 0.0), (VE(), EDM(0.5), 1 / 0.5**2), (Flow(), EDM(0.5), 1 / 0.5**2)],
)
def test_the_loss_is_the_x0_error_in_the_published_weights(process, parametrization, floor):
    """SNR for a network of the noise; SNR + 1/sigma_data² for EDM's."""
    score = fake(network(process, parametrization))
    x, eps = batch().randn_like(torch.empty(6, 2)), batch().randn_like(torch.empty(6, 2))
    t = torch.linspace(0.1, 0.9, 6)
    cond = Condition(torch.tensor([0, 1, 2, 0, 1, -1]))
    alpha, sigma = process.at(t, like=x)
    error = score.score(alpha * x + sigma * eps, t, cond=cond).x0 - x
    wanted = ((alpha / sigma) ** 2 + floor) * error.square()
    found = score.denoising_loss(x, eps, t, cond)
    torch.testing.assert_close(found, wanted.mean(1), rtol=1e-3, atol=1e-5)


def test_it_starts_as_a_copy_of_the_teacher_without_guidance():
    teacher = Generator(network(), SPEC).with_guidance(3.0).denoiser
    plain, copy = teacher.backbone.backbone, fake(teacher).score.backbone
    assert type(copy) is type(plain)
    for mine, theirs in zip(copy.parameters(), plain.parameters(), strict=True):
        assert mine.equal(theirs) and mine is not theirs


@pytest.mark.parametrize(("setting", "dropout"), [(None, 0.3), (0.0, 0.0), (0.13, 0.13)])
def test_its_dropout_is_its_own_and_else_the_teachers(setting, dropout):
    teacher = dropping(0.3)
    score = FakeScore(teacher, IMAGES, FakeConfig(dropout=setting), AdversarialConfig()).score
    found = {m.p for m in score.backbone.modules() if isinstance(m, nn.Dropout)}
    assert found == {dropout} and score.backbone.config.dropout == dropout
    assert teacher.backbone.config.dropout == 0.3


def test_the_head_tells_the_students_images_from_real_ones_with_their_labels():
    told = fake(weight=1.0, head_weight=0.5)
    told.score.backbone = Recorded(told.score.backbone)
    given, x, cond = batch(400), torch.full((400, 2), 2.0), Condition(torch.arange(400) // 134)
    loss = told.loss(given, x, cond)
    (_, _, labels, _), *calls = told.score.backbone.asked
    seen, level, both = (torch.cat(parts) for parts in list(zip(*calls, strict=True))[:3])
    assert labels.equal(cond.label)
    assert both.equal(torch.cat([cond.label, given.images.cond.label]))
    # under Flow the level is 1000·t, and what is not image is standard noise
    t = level / 1000
    eps = (seen - (1 - t)[:, None] * torch.cat([x, given.images.x0])) / t[:, None]
    assert eps[t > 0.01].square().mean().sqrt() == pytest.approx(1.0, abs=0.07)
    assert float(t.mean()) == pytest.approx(0.5, abs=0.05)
    images = torch.cat([x, given.images.x0])
    fakes, reals = told.logits(images, eps, t, Condition(both)).chunk(2)
    wanted = (torch.log(1 + fakes.exp()) + torch.log(1 + (-reals).exp())).mean()
    torch.testing.assert_close(loss.numbers["head_loss"], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        loss.value, loss.numbers["denoising"] + 0.5 * loss.numbers["head_loss"]
    )


@pytest.mark.parametrize("layers", ["bottleneck", "all"])
def test_the_adversarial_gradient_reaches_head_score_and_images(layers):
    told = fake(weight=1.0, layers=layers)
    told.loss(batch(), torch.zeros(6, 2), None).numbers["head_loss"].backward()
    for module in (told.head, told.score.backbone.first):
        assert any(p.grad.abs().max() > 0 for p in module.parameters())
    x = torch.zeros(6, 2, requires_grad=True)
    told.requires_grad_(False)
    told.generator_loss(x, torch.randn_like(x), torch.full((len(x),), 0.5), None).sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()


def test_the_generator_loss_is_the_softplus_of_minus_the_logit():
    told, x, t = fake(weight=1.0), torch.ones(6, 2), torch.full((6,), 0.4)
    eps = batch().randn_like(x)
    wanted = torch.log(1 + torch.exp(-told.logits(x, eps, t, None)))
    torch.testing.assert_close(told.generator_loss(x, eps, t, None), wanted)


def test_a_head_on_the_teachers_activations_leaves_the_scores_alone():
    """As in FastGen: its input does not change, and it alone learns to discriminate."""
    teacher = network(seed=7)
    told = fake(teacher, weight=1.0, features="teacher")
    wanted = told.head(teacher.features(x := torch.ones(6, 2), t := torch.full((6,), 0.4)))
    nn.init.zeros_(told.score.backbone.first.weight)  # of no consequence
    zero = torch.zeros_like(x)
    torch.testing.assert_close(told.logits(x / (1 - 0.4), zero, t, None), wanted)
    teacher.requires_grad_(False)
    told.discriminator_loss(batch(), x, None).value.backward()
    assert any(p.grad.abs().max() > 0 for p in told.head.parameters())
    assert all(p.grad is None for p in told.score.parameters())
    # nobody trains or saves the teacher with it
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in told.parameters()}
    assert told.state_dict().keys() == fake(weight=1.0).state_dict().keys()


class Linear(nn.Module):
    """A critic whose features are the noised image, and a head whose logit is linear in it."""

    def features(self, x_t, t, *, cond=None):
        return [x_t]

    def forward(self, features):
        return 3 * features[0][:, 0] - 4 * features[0][:, 1]


def test_r1_is_the_squared_gradient_of_the_logit_at_real_images():
    """|(3, −4)|² = 25, times (1 − t)², as the logit sees 1 − t of the image."""
    told = fake(weight=1.0, r1=0.7, head_weight=0.5)
    told.head, told.score.features = Linear(), Linear().features
    given, x = batch(4000), torch.zeros(4000, 2)
    loss = told.discriminator_loss(given, x, None)
    given = batch(4000)
    given.randn_like(x), given.randn_like(x), told.times(given)
    share = (1 - told.times(given)).square()
    assert float(loss.numbers["r1"]) == pytest.approx(25 * float(share.mean()), rel=0.1)
    torch.testing.assert_close(loss.value, loss.numbers["head_loss"] + 0.7 * loss.numbers["r1"])
    whole = told.loss(batch(4000), x, None)
    head = whole.numbers["head_loss"] + 0.7 * whole.numbers["r1"]
    torch.testing.assert_close(whole.value, whole.numbers["denoising"] + 0.5 * head)


def test_dropout_is_no_part_of_r1():
    """Different masks for the two images made it many times as large."""
    images, labels = torch.randn(64, *IMAGES.shape), torch.zeros(64, dtype=torch.long)
    adversarial, values = AdversarialConfig(weight=1.0, r1=1.0), list[float]()
    for dropout in (0.0, 0.2):
        score = FakeScore(dropping(dropout), IMAGES, FakeConfig(), adversarial).train()
        for weights in score.parameters():  # a new network's dropout is followed by zeros
            torch.nn.init.normal_(weights, std=0.3, generator=torch.Generator().manual_seed(0))
        streams = {"images": ImageStream(images, labels)}
        (rows,) = Batches(streams, IMAGES, batch=64, seed=0).step(0)
        rows.begin("fake", 0)
        loss = score.loss(rows, torch.zeros_like(images), None)
        values.append(loss.numbers["r1"].item())
    assert 0.3 * values[0] < values[1] < 3 * values[0]


TIMES = (1.0, 0.6, 0.3)


def rollouts():
    """The student's calls in twenty steps, by the number of calls."""
    found = {}
    for step in range(20):
        student = network(seed=3)
        student.backbone = Recorded(student.backbone)
        x, cond = student_images(student, TIMES, batch(400, player="student", step=step))
        found[len(student.backbone.asked)] = (student, x, cond)
    return found


def test_the_student_is_trained_on_its_own_noised_images():
    """Each input is its last image under fresh noise; only the last call has a gradient."""
    found = rollouts()
    assert set(found) == {1, 2, 3}
    student, x, cond = found[3]
    calls = student.backbone.asked
    assert [float(level[0]) / 1000 for _, level, _, _ in calls] == pytest.approx(list(TIMES))
    assert [grad for *_, grad in calls] == [False, False, True]
    assert all(labels.equal(cond.label) for _, _, labels, _ in calls)
    seen, noises = calls[0][0], [calls[0][0]]
    for t, s, (after, *_) in zip(TIMES, TIMES[1:], calls[1:], strict=False):
        x0 = student(seen, t, cond=cond).x0.detach()
        noises.append((after - (1 - s) * x0) / s)
        seen = after
    drawn = torch.stack(noises)
    # fresh each time: neither the noise before nor that which the network sees
    assert float(drawn.std()) == pytest.approx(1.0, abs=0.07)
    assert torch.corrcoef(drawn.flatten(1)).triu(1).abs().max() < 0.12
    torch.testing.assert_close(student(seen, TIMES[-1], cond=cond).x0, x)
    assert x.requires_grad


def test_an_earlier_start_is_its_share_of_noise():
    student = network()
    student.backbone = Recorded(student.backbone)
    rollout(student, (0.4,), batch(), None)
    (asked, *_), given = student.backbone.asked[0], batch()
    given.shared_rand()  # which step is the last is drawn first
    torch.testing.assert_close(asked, 0.4 * given.noise())


def test_the_fake_is_shown_what_the_students_turn_left_and_else_new_images():
    student, given = network(), batch(player="student")
    x, cond = student_images(student, TIMES, given)
    student.backbone = Recorded(student.backbone)
    again, labels = cached_images(student, TIMES, given)
    assert again.equal(x) and labels.label.equal(cond.label) and not again.requires_grad
    assert student.backbone.asked == [], "the student was asked twice for the same images"
    new, _ = cached_images(student, TIMES, batch())
    assert student.backbone.asked and not new.requires_grad


def test_the_fake_learns_from_images_without_the_students_dropout():
    """They are those of sampling: the student's turn leaves none, and the fake's is without it."""
    student = dropping(0.5)
    given = Batches({}, IMAGES, batch=6, seed=0).step(0)[0]
    given.begin("student", 0)
    student_images(student.train(), TIMES[:1], given)
    assert given.carry == {}
    given.begin("fake", 0)
    found, _ = cached_images(student.eval(), TIMES[:1], given)
    given.begin("fake", 0)
    plain = deepcopy(student)
    set_dropout(plain.backbone, 0.0)
    torch.testing.assert_close(found, rollout(plain.train(), TIMES[:1], given, None))
    # nothing to leave out: the student is asked once
    given.carry.clear()
    student_images(plain.train(), TIMES[:1], given)
    assert "x" in given.carry


def test_the_scale_is_one_over_the_mean_error_and_finite_without_one():
    x = torch.tensor([[1.0, 3.0], [2.0, 2.0]], requires_grad=True)
    scale = row_scale(x, torch.tensor([[0.0, 0.0], [2.0, 2.0]]))
    assert float(scale[0]) == 0.5 and scale[1].isfinite() and not scale.requires_grad


def test_a_network_without_dropout_may_be_asked_for_none():
    """Presets set 0 for teachers that have it."""
    FakeScore(network(), SPEC, FakeConfig(dropout=0.0), AdversarialConfig())
    for dropout, problem in ((0.5, "this network has no dropout"), (1.0, "0 to below 1")):
        with pytest.raises(InputError, match=problem):
            FakeScore(network(), SPEC, FakeConfig(dropout=dropout), AdversarialConfig())


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["weight", "head_weight", "start", "r1"])
def test_weights_and_steps_that_are_negative_or_not_finite_are_refused(name, value):
    with pytest.raises(InputError, match=f"method.adversarial.{name} "):
        AdversarialConfig(**{name: value})
    with pytest.raises(InputError, match=r"method.fake.warmup "):
        FakeConfig(warmup=value)
