"""Consistency: where the levels lie, where the lower point comes from, and what is learnt."""

import math
import re
from copy import deepcopy

import pytest
import torch

import analytic
import toy
from fewstep.backbones import Backbone, UNetConfig
from fewstep.batching import Batches, ImageStream
from fewstep.denoiser import Denoiser
from fewstep.description import from_description
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.levels import DiscreteLevels, EctLevels, Levels
from fewstep.losses import SquaredError
from fewstep.methods.base import Task
from fewstep.methods.batch import Batch
from fewstep.methods.checks import training_warnings
from fewstep.methods.consistency import Consistency, ConsistencyConfig
from fewstep.noise import RowNoise, noise_from_seeds
from fewstep.optimizers import FitConfig
from fewstep.parametrization import EDM, Clean, Velocity
from fewstep.process import VE, VP, Flow
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Heun, StepContext, Transfer
from fewstep.times import FixedGrid, Karras, LogNormal
from fewstep.trainer import Training

SHAPE = (2,)
SPEC = SampleSpec(SHAPE)
CD18 = DiscreteLevels(growth="fixed", first=18)
CD = {"source": "teacher", "levels": CD18}


def batch(rows=64, x0=None, step=0):
    """Rows of the Gaussian that `analytic` knows."""
    if x0 is None:
        noise = torch.randn(2048, *SHAPE, generator=torch.Generator().manual_seed(5))
        x0 = analytic.MEAN + analytic.SPREAD * noise
    (only,) = Batches({"images": ImageStream(x0, None)}, SPEC, batch=rows, seed=0).step(step)
    only.begin("student", 0)
    return only


def on_path(process, parametrization):
    return Denoiser(analytic.OnPath(parametrization, SHAPE), process, parametrization)


def teacher(process=None, parametrization=None):
    return Generator(analytic.exact(process or VE(), parametrization or EDM(), SHAPE), SPEC)


def consistency(student, guide=None, steps=100, **settings):
    return Consistency(ConsistencyConfig(**settings), Task(student, SPEC, guide, steps))


# levels


def test_the_schedule_of_the_levels_follows_the_length_of_the_training():
    asked = []

    class Watching(EctLevels):
        def around(self, ratio, progress, ends):
            asked.append(progress)
            return super().around(ratio, progress, ends)

    for steps in (4, 8):
        method = consistency(toy.fresh(), steps=steps, levels=Watching())
        asked.clear()
        for step in range(0, steps + 2, 2):
            (turn,) = method.turns(step)
            turn.loss(batch(4, step=step))
        assert asked == [step / steps for step in range(0, steps + 2, 2)]


class WideLevels(Levels):
    """A rule of somebody else, whose r is always half of t."""

    bounds = 0.0, math.inf

    def around(self, ratio, progress, ends):
        return ratio, ratio / 2, ratio / 2


WIDE = pytest.mark.parametrize(
    "levels",
    [
        EctLevels(stages=3),
        EctLevels(q=16.0, k=8.0, stages=1),
        DiscreteLevels(last=40),
        DiscreteLevels(growth="fixed", first=18),
        WideLevels(),
    ],
    ids=str,
)


@WIDE
def test_a_gap_that_ends_large_is_said_where_images_and_noise_are_the_datas(levels):
    (message,) = training_warnings(consistency(toy.fresh(), levels=levels))
    assert re.search(r"is still large .* of the variance.*stages", message)
    assert "\n" not in message
    # a step of the teacher keeps the variance
    teacher = Generator(toy.fresh(1), SPEC)
    distilled = consistency(toy.fresh(), teacher, source="teacher", levels=levels)
    assert training_warnings(distilled) == []


@pytest.mark.parametrize(
    "levels",
    [EctLevels(), EctLevels(q=256.0), EctLevels(clock="flow"), EctLevels(k=8.0), DiscreteLevels()],
    ids=str,
)
def test_a_gap_that_ends_small_is_not_worth_a_word(levels):
    assert training_warnings(consistency(toy.fresh(), levels=levels)) == []


def test_a_uniform_number_of_exactly_zero_does_no_harm():
    """It is one in 2²⁴, comes again at every resume, and left a gap of 0 to divide by."""

    class Zero(Batch):
        def rand(self):
            return torch.zeros_like(super().rand())

    method = Consistency(ConsistencyConfig(), Task(toy.fresh(), toy.SPEC))
    (only,) = toy.batches(method, batch=8).step(0)
    only.__class__ = Zero
    only.begin("student", 0)
    assert method.student_loss(only, 0).value.isfinite()


def karras(count, low=0.002, high=80.0):
    """EDM's eq. 5, from the lowest."""
    share = torch.arange(count, dtype=torch.float64) / (count - 1)
    return (low ** (1 / 7) + share * (high ** (1 / 7) - low ** (1 / 7))) ** 7


def test_log_normal_levels_on_the_ladder_are_the_discretised_log_normal():
    method = consistency(on_path(VE(), EDM()), levels=DiscreteLevels())
    student, rungs = method.student, karras(11)
    ratio = student.process.ratio(LogNormal(mean=-1.1, std=2.0).times(torch.rand(200_000), student))
    upper, lower, gap = method.config.levels.around(ratio, 0, method.ends)
    torch.testing.assert_close(gap, upper - lower, rtol=1e-3, atol=1e-5)
    assert ((lower <= 1.0001 * ratio) & (ratio <= 1.0001 * upper)).all()
    place = torch.erf((rungs.log() + 1.1) / (math.sqrt(2) * 2.0))
    wanted = place.diff() / place.diff().sum()
    for low, high, share in zip(rungs, rungs[1:], wanted, strict=False):
        here = (lower / low - 1).abs() < 1e-4
        torch.testing.assert_close(upper[here], high.float().expand(int(here.sum())))
        assert abs(float(here.double().mean() - share)) < 4e-3


def test_the_karras_density_draws_all_intervals_alike():
    method = consistency(on_path(VE(), EDM()), teacher(), **CD)
    ratio = method.student.process.ratio(Karras().times(torch.rand(100_000), method.student))
    _, lower, _ = method.config.levels.around(ratio, 0, method.ends)
    rungs, counts = torch.unique(lower, return_counts=True)
    torch.testing.assert_close(rungs, karras(18)[:-1].float())
    assert (counts / 100_000 - 1 / 17).abs().max() < 4e-3


# the lower point


@pytest.mark.parametrize("process", [VE(), Flow(), VP()])
@pytest.mark.parametrize(("solver", "step"), [("euler", Transfer()), ("heun", Heun())])
def test_the_teachers_step_is_the_samplers(process, solver, step):
    guide = teacher()
    method = consistency(on_path(process, EDM()), guide, source="teacher", solver=solver)
    t, r = (float(process.time(torch.tensor(ratio))) for ratio in (2.0, 0.7))
    x_t = noise_from_seeds(range(5), SHAPE)
    walk = StepContext(guide.denoiser.under(process), None, RowNoise([]))
    wanted, _ = step(walk, x_t, t, r)
    found = method.teacher_step(x_t, torch.full((5,), t), torch.full((5,), r), batch(5))
    torch.testing.assert_close(found, wanted)


def test_a_solver_asks_the_teacher_once_or_twice():
    for solver, asks in (("euler", 1), ("heun", 2)):
        guide, asked = teacher(), []
        guide.denoiser.backbone.register_forward_hook(lambda *_, asked=asked: asked.append(1))
        method = consistency(on_path(VE(), EDM()), guide, source="teacher", solver=solver)
        method.student_loss(batch(), 0)
        assert len(asked) == asks


@pytest.mark.parametrize(
    "process, parametrization", [(VE(), EDM()), (Flow(), Velocity(Flow())), (VP(), EDM())]
)
def test_the_exact_student_has_no_loss_on_the_teachers_path(process, parametrization):
    settings = {"source": "teacher", "levels": DiscreteLevels(growth="fixed", first=400)}
    settings |= {"weight": "none", "loss": SquaredError(), "density": Karras()}
    student = on_path(process, parametrization)
    exact = consistency(student, teacher(), **settings).student_loss(batch(), 0).value
    other = analytic.exact(process, parametrization, SHAPE)
    wrong = consistency(other, teacher(), **settings).student_loss(batch(), 0).value
    assert float(exact) < 1e-8 < 1e-7 < float(wrong)


class PerRung(Backbone):
    """An affine map of its own at each rung: two parameters a level, nothing shared."""

    def __init__(self, rungs):
        super().__init__()
        self.config, self.shape, self.classes, self.level_scale = None, SHAPE, 0, 1.0
        self.levels = rungs.log() / 4
        self.gain, self.shift = (torch.nn.Parameter(torch.zeros(len(rungs))) for _ in range(2))

    def forward(self, x, level, *, level_s=None, cond=None):
        rung = (level[:, None] - self.levels).abs().argmin(1)
        return self.gain[rung][:, None] * x + self.shift[rung][:, None]

    def features(self, x, level, *, cond=None):
        return [x]


@pytest.mark.filterwarnings("ignore:.*start from noise alone")  # the levels end at sigma = 3
@pytest.mark.parametrize("solver", ["euler", pytest.param("heun", marks=pytest.mark.slow)])
def test_distillation_from_an_exact_teacher_ends_at_the_solvers_map(solver):
    """Each rung's answer is the composition of the steps below it; Heun's is the true flow's."""
    rungs = karras(10, 0.05, 3.0).float()
    student, guide = Denoiser(PerRung(rungs), VE(), EDM()), teacher()
    levels = DiscreteLevels(growth="fixed", first=10, ratios=(0.05, 3.0))
    settings = {"source": "teacher", "solver": solver, "levels": levels, "density": Karras()}
    method = consistency(student, guide, weight="none", loss=SquaredError(), **settings)
    streams = {"images": ImageStream(batch(2048).images.x0, None)}
    fit = FitConfig(steps=350, batch=64, lr=0.1, schedule="cosine", ema_halflife=64, clip=0.0)
    for _ in Training(method, Batches(streams, SPEC, batch=64, seed=0), fit):
        pass
    step = {"euler": Transfer(), "heun": Heun()}[solver]
    walk, errors = StepContext(guide.denoiser, None, RowNoise([])), []
    for top in (1, 3, 6, 9):
        t, x_t = float(rungs[top]) / 80, rungs[top] * torch.tensor([[-1.0, 0.5], [1.5, 0.0]])
        led = x_t
        for i in range(top, 0, -1):
            led, _ = step(walk, led, float(rungs[i]) / 80, float(rungs[i - 1]) / 80)
        with torch.no_grad():
            said = method.student(x_t, t).x0
        assert (said - led).abs().max() < 0.01, (top, said, led)
        one = torch.ones(1)
        true = analytic.as_flow_map(x_t, one, rungs[top], one, rungs[0])
        errors.append(float((said - true).abs().max()))
    assert (max(errors) < 0.03) == (solver == "heun"), errors


# gradients, targets, the student's start


def test_no_gradient_reaches_teacher_or_target():
    student, guide = toy.fresh(), Generator(toy.fresh(1), SPEC)
    torch.nn.init.normal_(guide.denoiser.backbone.last.weight)  # it says nothing at first
    settings = {**CD, "target_decay": 0.9}
    method = consistency(student, guide, **settings)
    method.student_loss(batch(), 0).value.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is None for p in method.target.parameters())
    assert any(bool(p.grad.abs().max() > 0) for p in method.student.parameters())


def test_the_gradient_is_that_of_a_constant_target():
    """Without stopping, the target's own gradient would be in it."""
    student = toy.fresh()
    settings = {
        "loss": SquaredError(),
        "weight": "none",
        "levels": EctLevels(clock="flow", q=4.0, k=8.0),
    }
    method = consistency(student, **settings)
    method.student_loss(batch(), 0).value.backward()
    found = [p.grad.clone() for p in student.parameters()]
    frozen, told = deepcopy(method.student), batch()
    x0 = told.images.x0
    t = method.config.density.times(told.rand(), student)
    eps = told.randn_like(x0)
    r = t * (1 - (1 + 8 * torch.sigmoid(-t)) / 4)
    r = r.clamp(min=0)
    with torch.no_grad():
        target = frozen(student.process.add_noise(x0, eps, r), r).x0
    student.zero_grad()
    said = student(student.process.add_noise(x0, eps, t), t).x0
    (said - target).square().mean().backward()
    for one, other in zip(found, student.parameters(), strict=True):
        torch.testing.assert_close(one, other.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "levels, decays",
    [(CD18, [0.9, 0.9]), (DiscreteLevels(growth="root", first=2, last=80), None)],
)
def test_the_target_follows_by_the_published_decay(levels, decays):
    """CT's mu(N) = exp(s0·ln(mu0)/N): constant on a ladder that does not grow."""
    settings = {"source": "teacher", "levels": levels, "target_decay": 0.9}
    method = consistency(toy.fresh(), Generator(toy.fresh(1), SPEC), steps=2, **settings)
    decays = decays or [math.exp(2 * math.log(0.9) / levels.count(k / 2)) for k in range(2)]
    training = Training(method, toy.batches(method, batch=8), FitConfig(steps=2, batch=8, lr=1e-2))
    for decay in decays:
        before = deepcopy(method.target)
        training.advance()
        for old, new, now in zip(
            before.parameters(),
            method.target.parameters(),
            method.student.parameters(),
            strict=True,
        ):
            torch.testing.assert_close(new, decay * old + (1 - decay) * now)
    assert "target" not in method.players
    assert any(name.startswith("method.target.") for name in training.state()[0])


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_both_passes_see_the_same_dropout(decay):
    config = UNetConfig(channels=(8,), layers=1, attention=(), groups=4, dropout=0.5)
    spec = SampleSpec((1, 4, 4))
    student = Denoiser(config.build(shape=spec.shape), Flow(), Velocity(Flow()))
    settings = ConsistencyConfig(target_decay=decay)
    method = Consistency(settings, Task(student, spec)).eval()
    method.student.train()  # as the trainer leaves it
    masks = []
    for module in method.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda _, seen, out: masks.append(out / seen[0]))
    x0 = torch.randn(8, *spec.shape)
    (told,) = Batches({"images": ImageStream(x0, None)}, spec, batch=8, seed=0).step(0)
    told.begin("student", 0)
    method.student_loss(told, 0)
    half = len(masks) // 2
    assert half > 0
    for a, b in zip(masks[:half], masks[half:], strict=True):
        assert a.round().equal(b.round())
        assert (a == 0).any()


def test_a_ladders_student_starts_where_it_was_trained_even_when_read_back():
    """A velocity network may be asked up to t = 1; the ladder ends at a ratio of 80."""
    method = consistency(toy.fresh(), Generator(toy.fresh(1), SPEC), **CD)
    made = method.generator()
    top = 80 / 81
    for generator in (made, from_description(made.describe())):
        assert generator.grid == method.config.grid
        assert generator.denoiser.span == method.student.span
        for steps in (1, 2, 3, 8):
            times = generator.grid(steps, generator.denoiser)
            assert float(times[0]) == pytest.approx(top, abs=1e-9)
    ratio = torch.full((4,), 79.9)  # the last interval's upper end
    upper, _, _ = CD18.around(ratio, 0, method.ends)
    assert float(method.student.process.time(upper)[0]) == pytest.approx(top, abs=1e-6)


def test_where_the_network_spans_the_ladder_no_span_is_described():
    method = consistency(on_path(VE(), EDM()), teacher(), **CD)
    assert method.student.span == method.student.natural_span


def test_a_grid_beyond_the_ladder_is_refused():
    method = consistency(
        toy.fresh(), Generator(toy.fresh(1), SPEC), grid=FixedGrid(((1.0,),)), **CD
    )
    with pytest.raises(InputError, match="trained for"):
        method.generator()


def test_what_cannot_work_is_refused():
    with pytest.raises(InputError, match='set it to "velocity", "v" or "edm"'):
        consistency(analytic.exact(VP(), Clean(VP()), SHAPE))
    with pytest.raises(InputError, match="needs a teacher: set teacher.load"):
        consistency(toy.fresh(), source="teacher")
    with pytest.raises(InputError, match="target_decay"):
        consistency(toy.fresh(), target_decay=1.0)
