"""Simple and fast distillation beside an exact teacher, and a student that can represent it."""

from dataclasses import dataclass

import pytest
import torch

import analytic
from analytic import MEAN, SPREAD
from fewstep import backbones
from fewstep.backbones import MLPConfig
from fewstep.batching import Batches
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import SquaredError
from fewstep.methods.base import Task
from fewstep.methods.sfd import Sfd, SfdConfig
from fewstep.noise import noise_from_seeds
from fewstep.optimizers import FitConfig
from fewstep.parametrization import EDM, Velocity
from fewstep.process import VE, Flow
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Ancestral, Heun, Multistep, Transfer, sample
from fewstep.times import KarrasGrid, UniformGrid
from fewstep.trainer import Training

SHAPE = (2,)
SPEC = SampleSpec(SHAPE)
TEACHER = Generator(analytic.exact(Flow(), Velocity()), SPEC)


@dataclass(frozen=True)
class TwoTimes:
    name: str = "affine"
    two_times: bool = True


class Affine(backbones.Backbone):
    """gain·x + shift, one of each for each way from t to s; counts how often it was asked."""

    def __init__(self):
        super().__init__()
        self.config, self.shape, self.classes, self.level_scale = TwoTimes(), SHAPE, 0, 1.0
        self.gain = torch.nn.Parameter(torch.zeros(101, 101))
        self.shift = torch.nn.Parameter(torch.zeros(101, 101))
        self.asked = []

    def forward(self, x, level, *, level_s=None, cond=None):
        t, s = (level / 10).round().long(), (level_s / 10).round().long()
        self.asked.append((int(t[0]), int(s[0]), x.detach().clone()))
        return self.gain[t, s][:, None] * x + self.shift[t, s][:, None]

    def features(self, x, level, *, cond=None):
        return [x]


def affine():
    return Denoiser(Affine(), Flow(), Velocity())


def sfd(student=None, teacher=TEACHER, spec=SPEC, **settings):
    return Sfd(SfdConfig(**settings), Task(student or affine(), spec, teacher))


def batches(rows=64, spec=SPEC):
    return Batches({}, spec, batch=rows, seed=0)


def losses(method, one, step=0):
    """Every turn of a step as the trainer takes it, without an update."""
    found = []
    for occurrence, turn in enumerate(method.turns(step)):
        one.begin(turn.player, occurrence)
        found.append(turn.loss(one))
    return found


def test_a_step_has_one_turn_an_interval_and_counts_take_turns():
    method = sfd(counts=(1, 3))
    assert [len(list(method.turns(step))) for step in range(4)] == [1, 3, 1, 3]
    method = sfd(counts=(4,))
    assert [turn.player for turn in method.turns(7)] == ["student"] * 4


@pytest.mark.parametrize("step", [Heun(), Multistep(), Multistep(order=3)])
def test_the_teachers_points_are_those_of_its_finer_path(step):
    order = {"order": step.order} if isinstance(step, Multistep) else {}
    name = type(step).__name__.lower()
    method = sfd(counts=(2,), between=3, solver=name, **order)
    (one,) = batches().step(0)
    one.begin("student", 0)
    noise = one.noise()
    losses(method, one)
    points = one.carry["points"]
    fine = list(TEACHER.with_sampler(step=step).path(noise, steps=8))
    torch.testing.assert_close(points[:, 0], fine[4])
    torch.testing.assert_close(points[:, 1], fine[8])
    # and near the closed form, as a walk of 8 steps is
    half, whole = torch.tensor([[0.5], [1.0]])
    wanted = analytic.as_flow_map(noise, 1 - whole, whole, 1 - half, half)
    torch.testing.assert_close(points[:, 0], wanted, atol=0.05, rtol=0)
    torch.testing.assert_close(points[:, 1], MEAN + SPREAD * noise, atol=0.05, rtol=0)


def test_the_students_own_state_is_fed_forward_from_one_noise():
    method = sfd(counts=(4,))
    network = method.student.backbone
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(1))
    (one,) = batches().step(0)
    found = losses(method, one)
    assert [(t, s) for t, s, _ in network.asked] == [(100, 75), (75, 50), (50, 25), (25, 0)]
    one.begin("student", 0)
    noise = one.noise()
    own = list(Generator(method.student, SPEC).path(noise, steps=4))
    for (_, _, seen), state in zip(network.asked[:4], own, strict=False):
        torch.testing.assert_close(seen, state)
    torch.testing.assert_close(one.carry["state"], own[-1])
    # the loss is to the teacher's point from the same noise, wherever the student stands
    for interval, (loss, state) in enumerate(zip(found, own[1:], strict=True)):
        wanted = (state - one.carry["points"][:, interval]).abs().mean()
        torch.testing.assert_close(loss.value, wanted)
        assert wanted > 0.1


def test_no_gradient_goes_to_the_state_or_the_teacher():
    torch.manual_seed(0)
    learnt = Denoiser(MLPConfig(width=8).build(shape=SHAPE), Flow(), Velocity())
    method = sfd(teacher=Generator(learnt, SPEC), counts=(2,))
    (one,) = batches().step(0)
    first, second = losses(method, one)
    assert all(not value.requires_grad for value in one.carry.values())
    second.value.backward()
    gain = method.student.backbone.gain.grad
    assert gain[50, 0] != 0 and gain[100, 50] == 0
    first.value.backward()
    assert gain[100, 50] != 0
    assert all(p.grad is None for p in learnt.parameters())


def test_the_teachers_clip_holds_for_the_solver_and_what_does_not_is_told():
    taught = TEACHER.with_sampler(step=Ancestral(eta=0.5, clip=0.1))
    with pytest.warns(UserWarning, match=r"the sampler heun ignores eta = 0\.5 of ancestral"):
        method = sfd(teacher=taught, counts=(1,), solver="heun")
    (one,) = batches().step(0)
    losses(method, one)
    assert float(one.carry["points"][:, -1].abs().max()) == pytest.approx(0.1)


def test_classes_stay_with_their_rows():
    torch.manual_seed(0)
    spec = SampleSpec(SHAPE, 3)
    network = MLPConfig(width=8).build(shape=SHAPE, classes=3)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    teacher = Generator(Denoiser(network, Flow(), Velocity()), spec)
    method = Sfd(SfdConfig(counts=(2,), solver="transfer"), Task(teacher.denoiser, spec, teacher))
    (one,) = batches(spec=spec).step(0)
    found = losses(method, one)
    one.begin("student", 0)
    noise, cond = one.noise(), one.cond()
    assert set(cond.label.tolist()) == {0, 1, 2}
    # the untrained student is the teacher at twice the stride
    ends = [sample(teacher.denoiser, noise, UniformGrid()(n, teacher.denoiser), cond=c)
            for n, c in ((2, cond), (8, cond), (8, Condition(cond.label.flip(0))))]  # fmt: skip
    torch.testing.assert_close(found[1].value, (ends[0] - ends[1]).abs().mean())
    assert (ends[0] - ends[2]).abs().mean() > 1.2 * (ends[0] - ends[1]).abs().mean()


def test_the_students_steps_land_on_the_teachers_points():
    method = sfd(counts=(1, 2), between=1, solver="heun", loss=SquaredError())
    fit = FitConfig(steps=100, batch=16, lr=0.3, schedule="cosine", ema_halflife=100, clip=0.0)
    training = Training(method, batches(), fit)
    for _ in training:
        pass
    made = training.generator()
    assert made.grid.counts == (1, 2)
    noise = noise_from_seeds(range(200), SHAPE)
    for steps in (1, 2):
        walked = list(made.path(noise, steps=steps))
        fine = list(TEACHER.with_sampler(step=Heun()).path(noise, steps=2 * steps))[::2]
        for mine, theirs in zip(walked, fine, strict=True):
            torch.testing.assert_close(mine, theirs, atol=0.02, rtol=0)
    # the teacher's own strides end elsewhere
    one_step = sample(TEACHER.denoiser, noise, [1.0], step=Transfer())
    assert (one_step - MEAN - SPREAD * noise).abs().mean() > 0.2


def test_a_grid_that_asks_the_clean_end_stops_before_it():
    edm = analytic.exact(VE(), EDM())
    edm.backbone.config = TwoTimes()
    method = sfd(edm, Generator(analytic.exact(VE(), EDM()), SPEC), counts=(2,), grid=KarrasGrid())
    start, middle = method.times[2]
    low, high = (ratio ** (1 / 7) for ratio in (0.002, 80.0))
    assert start == pytest.approx(1.0)
    assert 80 * middle == pytest.approx(((low + high) / 2) ** 7, rel=1e-3)
    # a second stage of one step finds its teacher's points at the times of that one's three steps
    three, one = (
        sfd(edm, counts=(count,), between=between, grid=KarrasGrid())
        for count, between in ((3, 3), (1, 2))
    )
    assert one.teacher_times(1).tolist() == pytest.approx(three.times[3])


def test_a_second_stage_starts_from_the_first_with_other_settings():
    first = sfd(Denoiser(MLPConfig(width=8).build(shape=SHAPE), Flow(), Velocity()))
    again = first.generator()
    kept = {name: value.clone() for name, value in again.denoiser.state_dict().items()}
    second = sfd(again.denoiser, counts=(1,), last=SquaredError())
    for name, value in second.student.state_dict().items():
        assert value.equal(kept[name])
    assert second.generator().grid.counts == (1,)
    (one,) = batches().step(0)
    (loss,) = losses(second, one)
    off = one.carry["state"] - one.carry["points"][:, 0]
    torch.testing.assert_close(loss.value, off.abs().mean() + off.square().mean())
    # as published its teacher is the first stage, in its own steps
    theirs = sfd(again.denoiser, teacher=again, counts=(1,), between=1, solver="transfer")
    (one,) = batches().step(0)
    losses(theirs, one)
    one.begin("student", 0)
    torch.testing.assert_close(one.carry["points"][:, 0], again(one.noise(), steps=2))


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="counts"):
        sfd(counts=())
    with pytest.raises(InputError, match="counts"):
        sfd(counts=(0,))
    with pytest.raises(InputError, match='solver = "transfer"'):
        sfd(teacher=Generator(affine().as_flow_map(), SPEC))
    with pytest.raises(InputError, match="distils a teacher"):
        sfd(teacher=None)
    with pytest.raises(InputError, match='order is 3, which only method.solver = "multistep" has'):
        sfd(solver="heun", order=3)


def test_a_teacher_that_cannot_answer_everywhere_is_refused():
    """EDM's network was never asked beyond a ratio of 80; a velocity student would ask there."""
    guide = Generator(analytic.exact(VE(), EDM(), (2,)), SPEC)
    with pytest.raises(InputError, match="student's parametrization to the teacher's"):
        Sfd(
            SfdConfig(),
            Task(
                Denoiser(MLPConfig(width=8, depth=1).build(shape=(2,)), Flow(), Velocity()),
                SPEC,
                guide,
            ),
        )
