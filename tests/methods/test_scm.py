"""Continuous-time consistency: its tangent, its loss and its gradient against formulas."""

import math
from copy import deepcopy

import pytest
import torch

import analytic
import toy
from fewstep.backbones import UNetConfig
from fewstep.batching import Batches, ImageStream
from fewstep.denoiser import Denoiser
from fewstep.description import from_description
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.base import Task
from fewstep.methods.scm import Scm, ScmConfig
from fewstep.parametrization import EDM, Clean, V, Velocity
from fewstep.process import VE, VP, Cosine, Flow
from fewstep.sample_spec import SampleSpec

IMAGES = SampleSpec((2, 4, 4))
SIGMA = 0.5


def loud(network):
    """Weights that say something, in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for p in network.parameters():
            torch.nn.init.normal_(p, std=0.2)
    return network.double()


def unet(dropout=0.0):
    config = UNetConfig(channels=(8, 16), layers=1, attention=(4,), groups=4, dropout=dropout)
    return loud(config.build(shape=IMAGES.shape))


def batch(spec, rows=6):
    """Double precision throughout: times too."""
    seeded = torch.Generator().manual_seed(1)
    x0 = torch.randn(64, *spec.shape, dtype=torch.float64, generator=seeded)
    (only,) = Batches({"images": ImageStream(x0, None)}, spec, batch=rows, seed=0).step(0)
    only.begin("student", 0)
    only.rand = lambda: torch.linspace(0.05, 0.95, rows, dtype=torch.float64)
    return only


def written_out(method, told, step):
    """Loss and gradients as the paper writes them, the derivative by central differences."""
    student = method.student
    x0, eps = told.images.x0, told.randn_like(told.images.x0)
    ours = method.config.density.times(told.rand(), student)
    angle = math.pi / 2 * ours
    t = angle.reshape(-1, *[1] * (x0.ndim - 1))
    cos, sin = torch.cos(t), torch.sin(t)
    x_t = cos * x0 + sin * SIGMA * eps

    def scaled(denoiser, x, angle):
        """σ_d·F, by its definition: x0 = cos·x_t − sin·σ_d·F."""
        t = angle.reshape(-1, *[1] * (x0.ndim - 1))
        return (torch.cos(t) * x - denoiser(x, angle * 2 / math.pi).x0) / torch.sin(t)

    with torch.no_grad():
        if method.config.source == "teacher":
            slope = scaled(method.teacher.denoiser, x_t, angle)
        else:
            slope = cos * SIGMA * eps - sin * x0
        now, h = scaled(student, x_t, angle), 1e-7
        ahead = scaled(student, x_t + h * slope, angle + h)
        behind = scaled(student, x_t - h * slope, angle - h)
        r = min(1.0, step / 10)
        g = -(cos**2) * (now - slope) - r * cos * sin * (x_t + (ahead - behind) / (2 * h))
        length = g.square().flatten(1).mean(1).sqrt().reshape(t.shape)
        target = now / SIGMA + g / (length + 0.1)
    loss = (scaled(student, x_t, angle) / SIGMA - target).square().mean()
    return loss, torch.autograd.grad(loss, list(student.parameters())), length.mean()


@pytest.mark.parametrize("step", [0, 5, 20])
@pytest.mark.parametrize("source", ["teacher", "data"])
@pytest.mark.parametrize(
    "network, spec, parametrization",
    [
        (lambda: loud(toy.network()), toy.SPEC, Velocity(Flow())),
        (lambda: loud(toy.network()), toy.SPEC, V(Cosine())),
        (unet, IMAGES, EDM()),
    ],
)
def test_loss_and_gradient_are_the_papers(network, spec, parametrization, source, step):
    """r is step/10; a second pass, or a gradient through the tangent, would be in the gradient."""
    student = Denoiser(network(), Flow(), parametrization)
    guide = Generator(deepcopy(student), spec)
    for p in guide.parameters():
        p.data.mul_(0.7)
    config = ScmConfig(source=source, sigma_data=SIGMA, warmup=0.1)
    method = Scm(config, Task(student, spec, guide, steps=100))
    loss = method.student_loss(batch(spec), step)
    loss.value.backward()
    value, gradients, length = written_out(method, batch(spec), step)
    torch.testing.assert_close(loss.value, value, rtol=1e-5, atol=0)
    torch.testing.assert_close(loss.numbers["tangent"], length, rtol=1e-5, atol=0)
    largest = max(float(g.abs().max()) for g in gradients)
    for p, wanted in zip(method.student.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, wanted, rtol=1e-4, atol=1e-6 * largest)
    assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("parametrization", [Velocity(Flow()), EDM(), V(Cosine())])
def test_the_exact_student_of_an_exact_teacher_has_no_tangent(parametrization):
    guide = Generator(analytic.exact(VE(), Velocity(Flow()), (2,)), toy.SPEC)
    lengths = []
    for network in (analytic.OnPath, analytic.Exact):
        student = Denoiser(network(parametrization, (2,)), Flow(), parametrization)
        method = Scm(ScmConfig(warmup=0), Task(student, toy.SPEC, guide))
        lengths.append(float(method.student_loss(batch(toy.SPEC), 0).numbers["tangent"]))
    assert lengths[0] < 1e-6 < 1e-2 < lengths[1]


def test_the_student_is_kept_under_the_circle_and_starts_at_its_end():
    made = Scm(ScmConfig(source="data"), Task(toy.fresh(), toy.SPEC)).generator()
    for generator in (made, from_description(made.describe())):
        assert generator.denoiser.process == Cosine(0.5)
        assert float(generator.grid(1, generator.denoiser)[0]) == 1.0
    task = Task(analytic.exact(VE(), EDM(), (2,)), toy.SPEC)
    edm = Scm(ScmConfig(source="data"), task).generator()
    wanted = 2 / math.pi * math.atan(80 / 0.5)
    assert float(edm.grid(1, edm.denoiser)[0]) == pytest.approx(wanted)


@pytest.mark.parametrize(("warmup", "steps"), [(0, 0), (0.25, 50), (1, 1), (40, 40), (200, 200)])
def test_the_warmup_is_a_share_or_a_number_of_steps(warmup, steps):
    task = Task(toy.fresh(), toy.SPEC, steps=200)
    assert Scm(ScmConfig(source="data", warmup=warmup), task).warmup == steps


def test_a_warmup_beyond_the_end_is_said():
    task = Task(toy.fresh(), toy.SPEC, steps=200)
    (message,) = Scm(ScmConfig(source="data", warmup=10_000), task).warnings()
    assert message.startswith("method.warmup is 10000 of 200 ") and "r ends at 0.02 " in message
    assert Scm(ScmConfig(source="data", warmup=200), task).warnings() == []


def test_what_cannot_work_is_refused():
    with pytest.raises(InputError, match='set it to "velocity", "v" or "edm"'):
        Scm(ScmConfig(source="data"), Task(analytic.exact(VP(), Clean(VP()), (2,)), toy.SPEC))
    with pytest.raises(InputError, match="needs a teacher: set teacher.load"):
        Scm(ScmConfig(), Task(toy.fresh(), toy.SPEC))
    for name, value in (("sigma_data", 0.0), ("c", 0.0), ("warmup", -1), ("warmup", 1.5)):
        with pytest.raises(InputError, match=f"method.{name} "):
            Scm(ScmConfig(source="data", **{name: value}), Task(toy.fresh(), toy.SPEC))


def test_a_teacher_that_cannot_answer_everywhere_is_refused():
    """EDM's network was never asked beyond a ratio of 80; a velocity student would ask there."""
    guide = Generator(analytic.exact(VE(), EDM(), (2,)), toy.SPEC)
    with pytest.raises(InputError, match="student's parametrization to the teacher's"):
        Scm(ScmConfig(), Task(toy.fresh(), toy.SPEC, guide))
