"""MeanFlow against exact Gaussian data, whose average velocity is known in closed form."""

from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch

import analytic
from analytic import MEAN, SPREAD
from fewstep.backbones import MLPConfig, UNetConfig
from fewstep.batching import Batches
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import Task
from fewstep.methods.batch import ImageBatch
from fewstep.methods.meanflow import Meanflow, MeanflowConfig
from fewstep.noise import noise_from_seeds
from fewstep.optimizers import FitConfig
from fewstep.parametrization import EDM, Clean, V, Velocity
from fewstep.process import VE, VP, Flow
from fewstep.sample_spec import SampleSpec
from fewstep.times import LogNormal, Uniform
from fewstep.trainer import Training

SHAPE = (2,)
SPEC = SampleSpec(SHAPE)
TEACHER = Generator(analytic.exact(Flow(), Velocity(Flow())), SPEC)


@dataclass(frozen=True)
class TwoTimes:
    name: str = "average"
    two_times: bool = True


class Average(analytic.Exact):
    """The closed-form average velocity from t to s; at s = t the velocity itself."""

    def __init__(self):
        super().__init__(Velocity(Flow()), SHAPE)
        self.config = TwoTimes()

    def forward(self, x, level, *, level_s=None, cond=None):
        t, s = (a.reshape(-1, 1) / 1000 for a in (level, level if level_s is None else level_s))
        scale_t, scale_s = ((a**2 + ((1 - a) * SPREAD) ** 2).sqrt() for a in (t, s))
        # (x_t − x_s)/(t − s), rationalised so that s = t is no special case
        up = ((t + s) - SPREAD**2 * (2 - t - s)) / (scale_t * (scale_t + scale_s))
        return up * (x - (1 - t) * MEAN) - MEAN


class Smooth(Average):
    """Learns, and has times as plain inputs: smooth in them, as the slope needs."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 48), torch.nn.SiLU(), torch.nn.Linear(48, 48), torch.nn.SiLU(),
            torch.nn.Linear(48, 2),
        )  # fmt: skip

    def forward(self, x, level, *, level_s=None, cond=None):
        times = [level, level if level_s is None else level_s]
        return self.layers(torch.cat([x, torch.stack(times, dim=1) / 1000], dim=1))


class Gaussian:
    """A stream of exact data."""

    def __init__(self, shape=SHAPE, classes=0):
        self.shape, self.classes = shape, classes

    def __len__(self):
        return 100_000

    def rows(self, index, coin, device):
        z = noise_from_seeds(index.tolist(), self.shape)
        cond = Condition(index % self.classes) if self.classes else None
        return ImageBatch(MEAN + SPREAD * z, cond)


def batch(rows=64, shape=SHAPE, classes=0, micro=0):
    batches = Batches(
        {"images": Gaussian(shape, classes)}, SampleSpec(shape, classes), batch=rows, seed=0
    )
    made = batches.step(0, micro)
    for one in made:
        one.begin("student", 0)
    return made if micro else made[0]


def network(shape=SHAPE, classes=0, parametrization=None, dropout=0.0):
    """Random weights everywhere, where fresh networks are silent."""
    torch.manual_seed(1)
    if len(shape) == 1:
        config = MLPConfig(width=16, depth=2)
    else:
        config = UNetConfig(channels=(8, 16), layers=1, groups=4, attention=(), dropout=dropout)
    made = Denoiser(
        config.build(shape=shape, classes=classes), Flow(), parametrization or Velocity(Flow())
    ).as_flow_map()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return made


def meanflow(student=None, *, spec=SPEC, teacher=TEACHER, **settings):
    return Meanflow(MeanflowConfig(**settings), Task(student or network(), spec, teacher))


def exact():
    return Denoiser(Average(), Flow(), Velocity(Flow()))


def numbers(shape, rows=5):
    torch.manual_seed(2)
    x_t, v = torch.randn(2, rows, *shape, dtype=torch.float64)
    return x_t, v, torch.linspace(0.3, 0.9, rows).double(), torch.linspace(0.2, 0.1, rows).double()


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
@pytest.mark.parametrize("parametrization", [Velocity(Flow()), EDM(), V(VP())])
def test_the_loss_is_the_formula_with_a_slope_by_finite_differences(shape, parametrization):
    method = meanflow(
        network(shape, parametrization=parametrization).double(), spec=SampleSpec(shape)
    )
    x_t, v, t, s = numbers(shape)

    def u(x_t, t):
        # eps − x0 of the prediction: Flow's velocity
        said = method.student(x_t, t, s=s)
        return said.eps - said.x0

    with torch.no_grad():
        h = 1e-7  # levels count to 1000
        slope = (u(x_t + h * v, t + h) - u(x_t - h * v, t - h)) / (2 * h)
        gap = (t - s).reshape(-1, *[1] * len(shape))
        wanted = (u(x_t, t) - v + gap * slope).square().flatten(1).sum(1)
        found = method.squared_residual(x_t, v, t, s, None)
    assert float(slope.abs().mean()) > 0.01
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_the_gradient_is_that_of_two_passes_and_stays_out_of_the_target(shape):
    method = meanflow(network(shape).double(), spec=SampleSpec(shape))
    x_t, v, t, s = numbers(shape)
    method.squared_residual(x_t, v, t, s, None).sum().backward()
    found = [p.grad.clone() for p in method.student.parameters()]
    method.zero_grad()
    with torch.no_grad():
        _, slope = torch.func.jvp(
            lambda x_t, t, s: method.student(x_t, t, s=s).velocity,
            (x_t, t, s),
            (v, torch.ones_like(t), torch.zeros_like(s)),
        )
        target = v - (t - s).reshape(-1, *[1] * len(shape)) * slope
    (method.student(x_t, t, s=s).velocity - target).square().sum().backward()
    for one, two in zip(found, method.student.parameters(), strict=True):
        torch.testing.assert_close(one, two.grad, rtol=1e-9, atol=1e-9)


def test_the_slope_sees_the_dropout_of_the_prediction():
    """With one mask for both, the slope by finite differences under that mask is the jvp's."""
    shape = (1, 4, 4)
    method = meanflow(network(shape, dropout=0.5).double(), spec=SampleSpec(shape)).train()
    x_t, v, t, s = numbers(shape)

    def ask(h):
        # in forward mode too: the network works in another memory format there, and masks follow it
        torch.manual_seed(3)
        moved, told = (x_t + h * v, t + h), (torch.zeros_like(v), torch.zeros_like(t))
        return torch.func.jvp(lambda x, t: method.student(x, t, s=s).velocity, moved, told)[0]

    with torch.no_grad():
        h = 1e-7
        ahead, behind, here = ask(h), ask(-h), ask(0.0)
        torch.manual_seed(3)
        found = method.squared_residual(x_t, v, t, s, None)
    assert (method.student.eval()(x_t, t, s=s).velocity != here).all()
    slope = (ahead - behind) / (2 * h)
    wanted = here - v + (t - s).reshape(-1, 1, 1, 1) * slope
    torch.testing.assert_close(found, wanted.square().flatten(1).sum(1), rtol=1e-6, atol=1e-9)


def test_the_exact_average_velocity_has_no_loss_and_one_step_is_exact():
    method = meanflow(exact(), source="teacher", distinct=0.5, density=Uniform(), p=0.0)
    assert float(method.student_loss(batch(500)).value) < 1e-9
    made = method.generator()
    noise = noise_from_seeds(range(5), SHAPE)
    one, zero = torch.ones(1), torch.zeros(1)
    wanted = analytic.as_flow_map(noise, zero, one, one, zero)
    for steps in (1, 3):
        torch.testing.assert_close(made(noise, steps=steps), wanted, rtol=1e-4, atol=1e-5)
    # of the data's own velocity the exact student misses just the spread around its mean
    plain = meanflow(exact(), distinct=0.5, p=0.0)
    assert float(plain.student_loss(batch(500)).value) > 0.1


def test_where_s_is_t_it_is_flow_matching():
    method = meanflow(distinct=0.0, p=0.0)
    one = batch()
    found = method.student_loss(one)
    x0 = one.images.x0
    one.begin("student", 0)
    t, s = method.times(one)
    eps = one.randn_like(x0)
    x_t = (1 - t)[:, None] * x0 + t[:, None] * eps
    mse = squared_error(method.student(x_t, t).output, eps - x0).mean()
    torch.testing.assert_close(found.numbers["error"], mse)
    torch.testing.assert_close(found.value, 2 * mse)  # a sum over the row's two elements
    assert (s < t).float().mean() > 0.9


@pytest.mark.parametrize("p", [0.0, 0.75, 1.0])
def test_the_adaptive_weight_is_no_path_of_the_gradient(p):
    method, c = meanflow(distinct=0.0, p=p, c=0.1), 0.1
    one = batch()
    value = method.student_loss(one).value
    x0 = one.images.x0
    value.backward()
    found = [p.grad.clone() for p in method.student.parameters() if p.grad is not None]
    method.zero_grad()
    one.begin("student", 0)
    t, _ = method.times(one)
    eps = one.randn_like(x0)
    residual = method.student((1 - t)[:, None] * x0 + t[:, None] * eps, t, s=t).velocity - eps + x0
    square = residual.square().sum(1)
    (square / (square.detach() + c) ** p).mean().backward()
    again = [p.grad for p in method.student.parameters() if p.grad is not None]
    torch.testing.assert_close(found, again)


@pytest.mark.parametrize("source, shape, c", [
    ("data", SHAPE, 1e-3), ("teacher", SHAPE, 1.0), ("teacher", (1, 4, 4), 8.0),
])  # fmt: skip
def test_the_default_of_c_follows_the_noise_of_the_velocity(source, shape, c):
    """From a teacher, a row that is learnt weighs thrice as much as one that is off by 1."""
    spec = SampleSpec(shape)
    settings = {"source": source, "spec": spec, "teacher": Generator(network(shape), spec)}
    default, explicit = (meanflow(network(shape), **settings, **more) for more in ({}, {"c": c}))
    for method in (default, explicit):
        with torch.no_grad():
            for p in method.student.parameters():
                p.mul_(1.1)
    one, other = (m.student_loss(batch(shape=shape)).value.item() for m in (default, explicit))
    assert one == other > 0


@pytest.mark.parametrize("distinct", [0.0, 0.25, 0.6, 1.0])
def test_rows_apart_are_as_many_as_asked_in_every_micro_batch(distinct):
    method = meanflow(distinct=distinct)
    count = 0
    for part in batch(60, micro=10):
        apart, here = method.split_rows(part)
        assert len(apart) == pytest.approx(10 * distinct, abs=1)
        assert sorted([*apart.tolist(), *here.tolist()]) == list(range(10))
        count += len(apart)
    assert count == round(60 * distinct)


def test_the_times_are_the_later_and_the_earlier_of_two_draws():
    method = meanflow(density=Uniform())
    t, s = method.times(batch(4000))
    # the mean of the larger and of the smaller of two uniform numbers
    assert float(t.mean()) == pytest.approx(2 / 3, abs=0.02)
    assert float(s.mean()) == pytest.approx(1 / 3, abs=0.02)
    two = meanflow(density=LogNormal(mean=-0.6, std=1.6), density_s=LogNormal(mean=-4.0, std=1.6))
    t, s = two.times(batch(4000))
    assert float(torch.logit(t).mean()) == pytest.approx(-0.6, abs=0.1)
    assert (s <= t).all()
    assert float(torch.logit(s).mean()) == pytest.approx(-4.1, abs=0.2)


def test_guidance_is_the_formula_and_leaves_rows_without_label_alone():
    classes = 3
    method = meanflow(
        network(classes=classes),
        spec=SampleSpec(SHAPE, classes),
        guidance=2.0,
        kappa=0.4,
        interval=(0.2, 0.7),
    )
    torch.manual_seed(4)
    x_t, plain = torch.randn(2, 4, *SHAPE)
    t = torch.tensor([0.1, 0.5, 0.6, 0.9])
    cond = Condition(torch.tensor([0, 1, -1, 2]))
    found = method.velocity(plain, x_t, t, cond)
    asked = method.student(x_t, t, cond=cond).velocity
    free = method.student(x_t, t).velocity
    omega = 1.2  # 2·(1 − 0.4)
    wanted = plain.clone()
    wanted[1] = (omega * plain + 0.4 * asked + (1 - omega - 0.4) * free)[1]
    torch.testing.assert_close(found, wanted)


def test_the_velocity_guided_at_the_effective_scale_is_the_fixed_point():
    """A student that says w·v + (1 − w)·free, with the velocity v of the data, stays there."""
    spec, kappa, w = SampleSpec(SHAPE, 3), 0.4, 2.0
    method = meanflow(network(classes=3), spec=spec, guidance=w, kappa=kappa)
    torch.manual_seed(4)
    x_t, t, cond = torch.randn(4, *SHAPE), torch.rand(4), Condition(torch.tensor([0, 1, 2, 0]))
    said = method.student(x_t, t, cond=cond).velocity
    free = method.student(x_t, t).velocity
    v = free + (said - free) / w
    torch.testing.assert_close(method.velocity(v, x_t, t, cond), said, rtol=1e-4, atol=1e-5)


def test_guided_targets_pass_no_gradient():
    classes = 3
    spec = SampleSpec(SHAPE, classes)
    one = batch(classes=classes)
    guided = meanflow(network(classes=classes), spec=spec, guidance=2.0, distinct=0.0, p=0.0)
    guided.student_loss(one).value.backward()
    found = guided.student.backbone.last.weight.grad.clone()
    guided.zero_grad()
    x0, cond = one.images.x0, one.images.cond
    one.begin("student", 0)
    t, _ = guided.times(one)
    eps = one.randn_like(x0)
    cond = cond.drop(one.rand() < 0.1)
    assert (cond.label < 0).any()
    x_t = guided.student.process.add_noise(x0, eps, t)
    target = guided.velocity(eps - x0, x_t, t, cond).detach()
    residual = guided.student(x_t, t, s=t, cond=cond).velocity - target
    residual.square().sum(1).mean().backward()
    torch.testing.assert_close(found, guided.student.backbone.last.weight.grad)


def test_a_teacher_gives_the_velocity_and_no_gradient():
    torch.manual_seed(0)
    teacher = Generator(deepcopy(network()), SPEC)
    method = meanflow(teacher=teacher, source="teacher")
    x_t, plain = torch.randn(2, 8, *SHAPE)
    t = torch.rand(8)
    torch.testing.assert_close(
        method.velocity(plain, x_t, t, None), teacher.denoiser(x_t, t).velocity
    )
    method.student_loss(batch()).value.backward()
    assert all(p.grad is None for p in teacher.parameters())
    # an EDM network of the VE world gives Flow's velocity
    other = meanflow(
        network(parametrization=EDM()),
        teacher=Generator(analytic.exact(VE(), EDM()), SPEC),
        source="teacher",
    )
    t = t.clamp(0.1, 0.9)
    wanted = TEACHER.denoiser(x_t, t).velocity
    torch.testing.assert_close(other.velocity(plain, x_t, t, None), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_closed_form_is_learnt_from_an_exact_teacher():
    torch.manual_seed(5)
    method = meanflow(
        Denoiser(Smooth(), Flow(), Velocity(Flow())), source="teacher", distinct=0.5, p=0.0,
        density=Uniform(),
    )  # fmt: skip
    batches = Batches({"images": Gaussian()}, SPEC, batch=64, seed=0)
    fit = FitConfig(steps=250, batch=64, lr=1e-2, schedule="cosine", ema_halflife=500)
    training = Training(method, batches, fit)
    for _ in training:
        pass
    noise = noise_from_seeds(range(500), SHAPE)
    made = training.generator()(noise, steps=1)
    wanted = MEAN + SPREAD * noise
    error = float((made - wanted).square().mean().sqrt())
    # the velocity alone, one Euler step of it, ends at the mean: off by the whole spread
    euler = float((TEACHER(noise, steps=1) - wanted).square().mean().sqrt())
    assert euler == pytest.approx(SPREAD, abs=0.05)
    assert error < 0.3 * euler


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match='"x0" is not'):
        meanflow(network(parametrization=Clean(VP())))
    with pytest.raises(InputError, match="needs a teacher: set teacher.load"):
        meanflow(teacher=None, source="teacher")
    with pytest.raises(InputError, match="needs classes or prompts"):
        meanflow(guidance=2.0)
    with pytest.raises(InputError, match=r"teacher\.guidance"):
        meanflow(guidance=2.0, source="teacher")
    with pytest.raises(InputError, match="kappa"):
        meanflow(kappa=1.0)
    with pytest.raises(InputError, match="was trained only at"):
        meanflow(source="teacher", teacher=Generator(analytic.exact(VE(), EDM()), SPEC))
