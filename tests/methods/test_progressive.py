"""Progressive distillation: one step of the student is two DDIM steps of its guide."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import toy
from analytic import MEAN, SPREAD, Exact, exact
from fewstep import runs
from fewstep.batching import Batches
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.base import Task
from fewstep.methods.batch import ImageBatch
from fewstep.methods.progressive import Progressive, ProgressiveConfig
from fewstep.noise import noise_from_seeds
from fewstep.optimizers import FitConfig
from fewstep.parametrization import EDM, Clean, V, Velocity
from fewstep.process import VE, VP, Cosine, Flow
from fewstep.sample_spec import SampleSpec
from fewstep.times import KarrasGrid, UniformGrid
from fewstep.trainer import Training

SHAPE = (2, 3)
SPEC = SampleSpec(SHAPE)
WORLDS = [(Flow(), Velocity(Flow())), (VE(), EDM()), (Cosine(), V(Cosine())), (VP(), Clean(VP()))]


class Gaussian:
    """A stream of exact samples; with labels where there are classes."""

    def __init__(self, dtype=torch.float64, classes=0):
        self.dtype, self.classes = dtype, classes

    def __len__(self):
        return 1000

    def rows(self, index, coin, device):
        drawn = torch.randn(len(index), *SHAPE, generator=torch.Generator().manual_seed(7))
        cond = Condition(index % self.classes) if self.classes else None
        return ImageBatch((MEAN + SPREAD * drawn).to(self.dtype), cond)


class Affine(Exact):
    """Tells `Clean` images, gain·x + shift, with a gain and a shift for each time of a grid."""

    def __init__(self, times):
        super().__init__(Clean(Flow()), SHAPE)
        self.times = times
        self.gain = nn.Parameter(torch.ones(len(times)))
        self.shift = nn.Parameter(torch.zeros(len(times)))
        self.asked = []

    def forward(self, x, level, *, level_s=None, cond=None):
        t = level / 1000
        self.asked.append(t.detach())
        which = (t[:, None] - self.times.to(t)).abs().argmin(1)
        return self.gain[which, None, None] * x + self.shift[which, None, None]


def batch(rows=300, dtype=torch.float64, classes=0, seed=0):
    spec = SampleSpec(SHAPE, classes)
    (only,) = Batches({"images": Gaussian(dtype, classes)}, spec, batch=rows, seed=seed).step(0)
    only.begin("student", 0)
    return only


def progressive(student, teacher, *, spec=SPEC, steps=10, **settings):
    teacher = Generator(teacher, spec)
    return Progressive(ProgressiveConfig(**settings), Task(student, spec, teacher, steps))


def drawn(method, phase, only):
    """The times and noisy images of a batch, drawn again: x0, t, x_t, and its row of the grid."""
    only.begin("student", 0)
    x0 = only.images.x0
    which = (only.rand() * phase.steps).long()
    times = method.times[:: len(method.times) // phase.steps]
    t = times[which]
    return times, which, t, method.student.process.add_noise(x0, only.randn_like(x0), t)


def ddim(model, x_t, t, s):
    """Song et al. 2010.02502, eq. 12 without noise, written out."""
    said = model(x_t, t)
    alpha_t, sigma_t = model.process.at(t, like=x_t)
    alpha_s, sigma_s = model.process.at(s, like=x_t)
    return alpha_s * said.x0 + sigma_s * (x_t - alpha_t * said.x0) / sigma_t


def papers_target(model, times, which, x_t, grid):
    """Algorithm 2 of 2202.00512: two steps row by row, then the image that one would need."""
    wanted = torch.empty_like(x_t)
    for row in range(len(x_t)):
        i, x = int(which[row]), x_t[row : row + 1]
        t, m = grid[2 * i], grid[2 * i + 1]
        assert t == times[i]
        x_m = ddim(model, x, t, m)
        if 2 * i + 2 == len(grid):
            wanted[row] = model(x_m, m).x0[0]
            continue
        x_s = ddim(model, x_m, m, grid[2 * i + 2])
        alpha_t, sigma_t = model.process.at(t, like=x)
        alpha_s, sigma_s = model.process.at(grid[2 * i + 2], like=x)
        share = sigma_s / sigma_t
        wanted[row] = ((x_s - share * x) / (alpha_s - share * alpha_t))[0]
    return wanted


class Wrong(Exact):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) + 0.25


@pytest.mark.parametrize(
    ("process", "parametrization", "grid"),
    [*((*world, UniformGrid()) for world in WORLDS), (VE(), EDM(), KarrasGrid())],
)
@pytest.mark.parametrize("steps", [4, 2, 1])
def test_the_target_is_two_explicit_ddim_steps(process, parametrization, grid, steps):
    """The loss of a student that says something else is that student's distance to it."""
    teacher = exact(process, parametrization, SHAPE)
    student = Denoiser(Wrong(parametrization, SHAPE), process, parametrization)
    method = progressive(student, teacher, first=4, grid=grid, bound=3.0)
    phase = next(p for p in method.phases if p.steps == steps)
    method.guide = teacher
    only = batch(30)
    value = method.student_loss(only, phase).value
    finest = grid(8, student)[:: 4 // steps]
    times, which, t, x_t = drawn(method, phase, only)
    wanted = papers_target(teacher, times, which, x_t, finest)
    said = student(x_t, t)
    weight = (said.alpha / said.sigma).square().clamp(1, 3).flatten()
    error = (said.x0 - wanted).square().flatten(1).mean(1)
    assert float(value) == pytest.approx(float((weight * error).mean()), rel=1e-9)
    assert float(value) > 1e-4


@pytest.mark.parametrize(
    ("parametrization", "weights"),
    [
        (Velocity(Flow()), lambda a, s: ((a + s) / s) ** 2),
        (V(VP()), lambda a, s: 1 + (a / s) ** 2),
        (EDM(0.5), lambda a, s: (s**2 + 0.25 * a**2) / (0.5 * s) ** 2),
        (Clean(VP()), lambda a, s: torch.ones_like(s)),
    ],
)
def test_weights_are_those_of_the_papers(parametrization, weights):
    """SNR truncated at 1, or the raw output's own: SNR + 1 for v, EDM's for EDM; both bounded."""
    student = exact(VP(), parametrization, SHAPE)
    t = torch.linspace(0.1, 0.99, 50, dtype=torch.float64)
    said = student(torch.randn(50, *SHAPE, dtype=torch.float64), t)
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    for bound in (1e4, 5.0):
        truncated = progressive(student, student, bound=bound).weight(said)
        wanted = torch.maximum((alpha / sigma) ** 2, torch.ones_like(t)).clamp(max=bound)
        torch.testing.assert_close(truncated, wanted)
        raw = progressive(student, student, bound=bound, weight="output").weight(said)
        torch.testing.assert_close(raw, weights(alpha, sigma).clamp(max=bound))


def test_a_student_trained_to_the_end_lands_where_the_teachers_steps_do():
    """Affine students of an exact teacher: 4 steps land where 8 do, and after 3 phases so does 1.

    Each time's answer is free, so that every phase can be learnt exactly.
    """
    teacher = exact(Flow(), Velocity(Flow()), SHAPE)
    student = Denoiser(Affine(UniformGrid()(8, teacher)), Flow(), Clean(Flow()))
    method = progressive(student, teacher, steps=360, first=4, weight="output")
    config = FitConfig(steps=360, batch=64, lr=0.1, schedule="cosine")
    batches = Batches({"images": Gaussian(torch.float32)}, SPEC, batch=64, seed=0)
    noise = noise_from_seeds(range(100), SHAPE)
    with torch.inference_mode():
        wanted = Generator(teacher, SPEC)(noise, steps=8)
        alone = Generator(teacher, SPEC)(noise, steps=1)
    assert float((alone - wanted).abs().max()) > 0.1
    for progress in Training(method, batches, config):
        steps = {120: 4, 240: 2, 360: 1}.get(progress.step)
        if steps:
            made = Generator(method.student, SPEC)(noise, steps=steps).detach()
            torch.testing.assert_close(made, wanted, atol=5e-3, rtol=0)


def test_a_student_that_lands_there_has_no_loss():
    teacher = exact(Flow(), Velocity(Flow()), SHAPE)

    class Landing(Exact):
        """Says the velocity that leads from x_t to where the teacher's two steps land."""

        def forward(self, x, level, **kwargs):
            t = level / 1000
            x_m = x - 0.25 * teacher(x, t).velocity
            return 0.5 * (teacher(x, t).velocity + teacher(x_m, t - 0.25).velocity)

    student = Denoiser(Landing(Velocity(Flow()), SHAPE), Flow(), Velocity(Flow()))
    method = progressive(student, teacher, first=2)
    assert float(method.student_loss(batch(), method.phases[0]).value) < 1e-20


def test_the_student_is_trained_at_the_times_at_which_it_is_sampled():
    teacher = exact(Flow(), Velocity(Flow()), SHAPE)
    student = Denoiser(Affine(UniformGrid()(8, teacher)), Flow(), Clean(Flow()))
    method = progressive(student, teacher, first=4)
    for phase in method.phases:
        made = progressive(student, teacher, first=4, last=phase.steps).generator()
        assert made.grid.counts == (phase.steps,)
        student.backbone.asked.clear()
        method.student_loss(batch(4000), phase)
        times, counts = torch.unique(student.backbone.asked[0], return_counts=True)
        assert (counts / 4000 - 1 / phase.steps).abs().max() < 0.03
        student.backbone.asked.clear()
        made(noise_from_seeds(range(3), SHAPE), steps=phase.steps)
        sampled = torch.stack([t[0] for t in student.backbone.asked]).double()
        torch.testing.assert_close(sampled, times.flip(0))


def trained(teacher, **fit):
    method = Progressive(
        ProgressiveConfig(first=4, phases=(2, 3, 2)),
        Task(deepcopy(teacher.denoiser), toy.SPEC, deepcopy(teacher), steps=7),
    )
    config = FitConfig(**{"steps": 10, "batch": 12, "lr": 1e-3, "schedule": "linear", **fit})
    return Training(method, toy.batches(method, batch=12), config)


@pytest.fixture(scope="module")
def untrained():
    return Generator(toy.fresh(), toy.SPEC)


def test_the_guide_becomes_the_student_at_a_phases_end_and_only_then(untrained):
    run = trained(untrained)
    method = run.method
    guides, students, rates = [hashed(method.guide)], [hashed(method.student)], []
    for progress in run:
        guides.append(hashed(method.guide))
        students.append(hashed(method.student))
        rates.append(progress.numbers["student/lr"])
    before, after = students[2], students[5]
    assert guides == [guides[0]] * 2 + [before] * 3 + [after] * 6
    assert rates == pytest.approx(
        [1e-3, 5e-4, 1e-3, 2e-3 / 3, 1e-3 / 3, 1e-3, 5e-4, 0.0, 0.0, 0.0], abs=1e-12
    )
    assert [len(set(students[i : i + 2])) for i in range(10)] == [2] * 7 + [1] * 3


def hashed(denoiser):
    return runs.weights_hash(Generator(denoiser, toy.SPEC))


@pytest.mark.parametrize("at", [1, 2, 3, 5, 6])
def test_resume_in_the_middle_of_any_phase_is_bit_identical(untrained, at):
    whole, first, second = trained(untrained), trained(untrained), trained(untrained)
    for _ in range(7):
        whole.advance()
    for _ in range(at):
        first.advance()
    tensors, told = first.state()
    second.restore({key: value.clone() for key, value in tensors.items()}, told)
    for _ in range(7 - at):
        second.advance()
    wanted, found = whole.state()[0], second.state()[0]
    assert wanted.keys() == found.keys()
    assert all(value.equal(found[key]) for key, value in wanted.items())


def test_no_gradient_reaches_teacher_or_guide(untrained):
    run = trained(untrained)
    method = run.method
    method.requires_grad_(True)
    only = toy.batches(method, batch=12).step(0)[0]
    for phase in method.phases:
        only.begin("student", 0)
        method.student_loss(only, phase).value.backward()
    assert all(p.grad is not None for p in method.student.parameters())
    others = [*method.teacher.parameters(), *method.guide.parameters()]
    assert others and all(p.grad is None for p in others)


class Labelled(Exact):
    """Says its label as the velocity; a condition of none counts as −1."""

    def __init__(self, bias=0.0):
        super().__init__(Velocity(Flow()), SHAPE)
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))
        self.classes, self.asked = 3, 0

    def forward(self, x, level, *, level_s=None, cond=None):
        self.asked += 1
        said = cond.label.to(x).reshape(-1, 1, 1) + self.bias
        return said.expand_as(x)


def test_guidance_is_folded_in_by_the_first_phase_and_never_applied_again():
    """Under constant velocities all steps agree: the target's is that of the guide itself."""
    spec = SampleSpec(SHAPE, 3)
    plain = Denoiser(Labelled(), Flow(), Velocity(Flow()))
    teacher = Generator(plain, spec).with_guidance(3.0)
    student = Denoiser(Labelled(0.5), Flow(), Velocity(Flow()))
    method = Progressive(ProgressiveConfig(first=2, weight="output"), Task(student, spec, teacher))
    only = batch(classes=3)
    label = only.images.cond.label.double()
    value = method.student_loss(only, method.phases[0]).value.detach()
    wanted = (label + 0.5 - (3 * label + 2)).square().mean()  # 3·label − 2·(−1)
    assert float(value) == pytest.approx(float(wanted))
    asked = plain.backbone.asked
    alone = method.student_loss(only, method.phases[1]).value.detach()  # its own guide
    assert float(alone) < 1e-20
    assert plain.backbone.asked == asked


def test_a_teacher_of_another_clock_is_asked_under_the_students():
    teacher = exact(VE(), EDM(), SHAPE)
    student = exact(Cosine(0.5), EDM(), SHAPE)
    values = [
        progressive(student, each, first=2).student_loss(
            batch(), progressive(student, each, first=2).phases[0]
        )
        for each in (teacher, student)
    ]
    assert float(values[0].value) == pytest.approx(float(values[1].value), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"first": 12, "last": 1}, "method.first must be method.last times a power of two"),
        ({"first": 2, "last": 4}, "method.first must be method.last times a power of two"),
        ({"first": 4, "last": 0}, "method.last is 0; it must be an integer from 1"),
        ({"first": 4, "phases": (5, 5)}, "there are 3 phases"),
        ({"first": 4, "phases": (1, 0, 1)}, "must be a number above 0"),
        ({"first": 16, "steps": 4}, "fit.steps is 4, but the method has 5 phases"),
    ],
)
def test_impossible_phases_are_refused(settings, told):
    denoiser = exact(Flow(), Velocity(Flow()), SHAPE)
    with pytest.raises(InputError, match=told):
        progressive(denoiser, denoiser, **settings)


def test_it_wants_a_teacher():
    with pytest.raises(InputError, match="teacher"):
        Progressive(ProgressiveConfig(), Task(toy.fresh(), toy.SPEC))
