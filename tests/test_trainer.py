import json
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from fewstep.backbones import Backbone
from fewstep.batching import Batches, ImageStream
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.losses import squared_error
from fewstep.methods.base import Loss, Method, Task, Turn
from fewstep.optimizers import FitConfig, PlayerConfig, learning_rate
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec
from fewstep.trainer import NonFiniteLoss, Training, fit

SPEC = SampleSpec((2,))


class Line(Backbone):
    """A linear network with dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.config, self.shape, self.classes, self.level_scale = None, (2,), 0, 1.0
        self.layer = nn.Linear(2, 2)
        self.dropout = nn.Dropout(dropout)
        with torch.no_grad():
            self.layer.weight.copy_(torch.eye(2) * 0.3)
            self.layer.bias.fill_(0.1)

    def forward(self, x, level, *, level_s=None, cond=None):
        return self.dropout(self.layer(x))

    def features(self, x, level, *, cond=None):
        return [x]


@dataclass(frozen=True)
class Config:
    fake_every: int = 1


class Duel(Method[Config]):
    """Two players; the fake learns twice a step and the student from what the fake left."""

    reads = frozenset({"images"})
    needs_teacher = False

    def __init__(self, config, task):
        super().__init__(config, task)
        self.fake = Denoiser(Line(), Flow(), Velocity())
        self.register_buffer("after", torch.zeros(()))
        self.log = []

    @property
    def players(self):
        return {"student": self.student, "fake": self.fake}

    def turns(self, step: int) -> Iterator[Turn]:
        yield Turn("fake", self.fake_loss)
        self.log.append(("fake", float(self.fake.backbone.layer.bias[0].detach())))
        yield Turn("fake", self.fake_loss)
        yield Turn("student", self.student_loss)
        self.after += 1

    def fake_loss(self, batch):
        x0 = batch.images.x0
        noise = batch.randn_like(x0)
        batch.carry["noise"] = noise
        return Loss(squared_error(self.fake(noise, 0.5).x0, x0).mean())

    def student_loss(self, batch):
        said = self.student(batch.carry["noise"], 0.5).x0
        judged = self.fake(said, 0.5).x0
        value = squared_error(judged, batch.images.x0).mean()
        return Loss(value, {"half": value / 2})

    def generator(self):
        return Generator(self.student, self.spec)


def duel_task(dropout=0.0):
    return Config(), Task(Denoiser(Line(dropout), Flow(), Velocity()), SPEC)


def duel(dropout=0.0):
    return Duel(*duel_task(dropout))


def batches(size=8, seed=0):
    points = torch.randn(64, 2, generator=torch.Generator().manual_seed(5))
    return Batches({"images": ImageStream(points, None)}, SPEC, batch=size, seed=seed)


def config(**settings):
    return FitConfig(**{"steps": 4, "batch": 8, "lr": 0.01, **settings})


def weights(method):
    return torch.cat([p.detach().flatten() for p in method.parameters()])


def test_turns_are_taken_in_order_and_resumed_after_the_update():
    method = duel()
    start = float(method.fake.backbone.layer.bias[0].detach())
    training = Training(method, batches(), config())
    training.advance()
    assert method.after == 1
    assert method.log[0][1] != start  # the line after a yield saw the updated weights
    assert training.step == 1


def test_one_step_is_adam_written_out():
    """Student alone, first step of Adam: w − lr·g/(|g| + eps), from a gradient made by hand."""
    from fewstep.methods.denoise import Denoise, DenoiseConfig

    method = Denoise(DenoiseConfig(), Task(Denoiser(Line(), Flow(), Velocity()), SPEC))
    twin = Denoise(DenoiseConfig(), Task(Denoiser(Line(), Flow(), Velocity()), SPEC))
    batch = batches().step(0)[0]
    batch.begin("student", 0)
    twin.student_loss(batch).value.backward()
    training = Training(method, batches(), config(optimizer="adam", clip=0.0))
    training.advance()
    for ours, theirs in zip(method.parameters(), twin.parameters(), strict=True):
        wanted = theirs.detach() - 0.01 * theirs.grad / (theirs.grad.abs() + 1e-8)
        torch.testing.assert_close(ours.detach(), wanted, rtol=1e-5, atol=1e-7)


def test_gradient_reaches_through_the_other_player_but_leaves_none_there():
    method = duel()
    training = Training(method, batches(), config(clip=0.0))
    training.advance()  # ends on the student's turn
    assert all(p.grad is not None for p in method.student.parameters())
    assert not any(p.requires_grad for p in method.fake.parameters())
    assert method.student.training and not method.fake.training


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_resume_is_bit_identical(dropout):
    whole = Training(duel(dropout), batches(), config(steps=6))
    for _ in whole:
        pass
    first = Training(duel(dropout), batches(), config(steps=6))
    for _ in range(3):
        first.advance()
    tensors, told = first.state()
    second = Training(duel(dropout), batches(), config(steps=6))
    second.restore(tensors, told)
    for _ in second:
        pass
    assert torch.equal(weights(whole.method), weights(second.method))
    assert second.method.after == 6
    for one, two in zip(whole.averages[0], second.averages[0], strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("micro", [3, 4])
def test_micro_batches_train_as_one_batch(micro):
    results = []
    for size in (0, micro):
        training = Training(duel(), batches(), config(micro_batch=size))
        numbers = [progress.numbers for progress in training][-1]
        results.append((weights(training.method), numbers))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-3)
    assert results[0][1]["student/half"] == pytest.approx(results[0][1]["student/loss"] / 2)


def test_dropout_is_replayed_for_a_second_pass():
    seen = []

    class Twice(Duel):
        def student_loss(self, batch):
            for _ in range(2):
                with batch.same_dropout():
                    seen.append(self.student(torch.ones(8, 2), 0.5).output.detach())
            seen.append(self.student(torch.ones(8, 2), 0.5).output.detach())
            return super().student_loss(batch)

    method = Twice(Config(), Task(Denoiser(Line(0.5), Flow(), Velocity()), SPEC))
    Training(method, batches(), config()).advance()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert (seen[0] == 0).any()


def test_training_leaves_the_global_generator_alone():
    training = Training(duel(0.5), batches(), config())
    before = torch.random.get_rng_state()
    training.advance()
    assert torch.equal(before, torch.random.get_rng_state())


def test_ema_is_its_recursion_with_ramp_up():
    method = duel()
    training = Training(method, batches(), config(ema_halflife=1000.0, ema_rampup=0.5))
    average = method.student.backbone.layer.bias.detach().clone()
    for step in range(4):
        training.advance()
        halflife = min(1000.0, 0.5 * 8 * (step + 1))
        decay = 0.5 ** (8 / halflife)
        average = decay * average + (1 - decay) * method.student.backbone.layer.bias.detach()
    kept = training.generator().denoiser.backbone.layer.bias
    torch.testing.assert_close(kept, average)
    raw = training.generator(average=None).denoiser.backbone.layer.bias
    assert torch.equal(raw, method.student.backbone.layer.bias)


@pytest.mark.parametrize(("rampup", "halflife"), [(0.0, 126_700), (0.05, 51_200)])
def test_the_halflife_of_ect_at_step_8000(rampup, halflife):
    """Its code has an average of 0.9993 a step of 128 images, which is 126,700 images, from step 0
    (run_ecm_1hour.sh); EDM's ramp-up would cap it at 5 % of 1,024,000 images."""
    method = duel()
    settings = {"batch": 128, "steps": 8000, "ema_halflife": 126_700.0, "ema_rampup": rampup}
    training = Training(method, batches(), config(**settings))
    training.step = 7999
    average = training.averages[0][1].zero_()
    training._average()
    share = average / method.student.backbone.layer.bias.detach()  # of the new weights
    torch.testing.assert_close(share, torch.full_like(share, 1 - 0.5 ** (128 / halflife)))
    if not rampup:
        assert 1 - share.mean() == pytest.approx(0.9993, abs=1e-5)


def test_a_halflife_below_1_is_a_share_of_the_training():
    """As 5 % of 4 steps of 8 images: 1.6 images."""
    results = []
    for halflife in (0.05, 1.6):
        training = Training(duel(), batches(), config(ema_halflife=halflife, ema_rampup=0.0))
        for _ in training:
            pass
        results.append(training.averages[0])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup": 10}, "fit.warmup is 10 steps, but this training has 4"),
        ({"warmup": 4}, "fit.warmup is 4 steps.*such as 0.05"),
        (
            {"players": {"fake": PlayerConfig(warmup=9)}},
            "fit.players.fake.warmup is 9 steps, but this training has 4",
        ),
        # 5 % of 4 steps of 8 images
        ({"ema_halflife": 3.0}, "fit.ema_halflife is 3 images.*0.05 limits it to 2 at the end"),
        ({"ema_halflife": (1.0, 200.0)}, "fit.ema_halflife is 200 images"),
        ({"ema_halflife": 32.0, "ema_rampup": 0.0}, "has 32: 50% of the average will be the init"),
    ],
)
def test_settings_that_a_training_is_too_short_for_are_warned_about(settings, message):
    with pytest.warns(UserWarning, match=message) as record:
        Training(duel(), batches(), config(**settings))
    assert len(record) == 1


def test_settings_that_a_training_can_reach_are_not_warned_about():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for settings in (
            {},
            {"warmup": 3},
            {"warmup": 0.99},
            {"ema_halflife": 1.6},
            {"ema_halflife": 8.0, "ema_rampup": 0.0},
            {"ema_halflife": 30.0, "ema_rampup": 1.0},
        ):
            Training(duel(), batches(), config(**settings))


def test_several_halflives_are_kept():
    training = Training(duel(), batches(), config(ema_halflife=(8.0, 8000.0), ema_rampup=1e9))
    for _ in training:
        pass
    fast, slow = (training.generator(average=i).denoiser.backbone.layer.bias for i in (0, 1))
    now = training.method.student.backbone.layer.bias.detach()
    assert (fast - now).abs().sum() < (slow - now).abs().sum()


def test_players_may_have_their_own_settings():
    training = Training(duel(), batches(), config(players={"fake": PlayerConfig(lr=0.5, clip=0.0)}))
    progress = training.advance()
    assert progress.numbers["fake/lr"] == 0.5 and progress.numbers["student/lr"] == 0.01
    with pytest.raises(InputError, match="fit.players.critic.*student, fake"):
        Training(duel(), batches(), config(players={"critic": PlayerConfig()}))


def test_gradients_are_clipped_to_the_norm():
    free, clipped = (Training(duel(), batches(), config(clip=c)) for c in (0.0, 1e-3))
    for training in (free, clipped):
        training.advance()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in clipped.method.student.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert clipped.advance().numbers["student/gradient"] > 1e-3  # logged before clipping


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    told = config(steps=110, warmup=10, schedule="cosine", lr=1.0)
    assert learning_rate(told, 0, 110) == pytest.approx(0.1)
    assert learning_rate(told, 9, 110) == learning_rate(told, 10, 110) == 1.0
    assert learning_rate(told, 60, 110) == pytest.approx(0.5)
    assert learning_rate(told, 109, 110) < 1e-3
    constant = config(steps=110, warmup=10, lr=1.0)
    assert learning_rate(constant, 4, 110) == 0.5 and learning_rate(constant, 100, 110) == 1.0
    for share in (0.09, 10 / 110):  # of the training, or of the phase
        assert learning_rate(config(warmup=share, lr=1.0), 4, 110) == 0.5
    assert learning_rate(config(warmup=0.5, lr=1.0), 0, 10) == pytest.approx(0.2)
    line = config(steps=110, warmup=10, lr=1.0, schedule="linear")
    assert learning_rate(line, 35, 110) == pytest.approx(0.75)
    halves = config(schedule="step", lr=1.0)
    assert [learning_rate(halves, done, 110) for done in (0, 54, 55, 109)] == [1, 1, 0.1, 0.1]
    assert learning_rate(line, 300, 110) == 0.0


def test_a_phase_forgets_moments_and_has_a_schedule_of_its_own():
    class Phases(Duel):
        def turns(self, step):
            phase = (0, 2) if step < 2 else (2, 4)
            yield Turn("student", self.plain, phase=phase)

        def plain(self, batch):
            return Loss(
                squared_error(self.student(batch.images.x0, 0.5).x0, batch.images.x0).mean()
            )

    method = Phases(Config(), Task(Denoiser(Line(), Flow(), Velocity()), SPEC))
    training = Training(method, batches(), config(steps=100, schedule="linear"))
    rates = [training.advance().numbers["student/lr"] for _ in range(4)]
    assert rates == pytest.approx([0.01, 0.005, 0.01, 0.005])
    state = training.optimizers["student"].state_dict()["state"]
    assert all(float(moments["step"]) == 2 for moments in state.values())
    with pytest.warns(UserWarning, match="warmup is 50 steps, but this phase has 2"):
        Training(Phases(*duel_task()), batches(), config(steps=100, warmup=50)).advance()


def test_a_loss_that_is_not_finite_stops_before_it_does_harm():
    class Bomb(Duel):
        def turns(self, step):
            yield Turn("student", self.plain if step < 2 else self.boom)

        def plain(self, batch):
            return Loss(self.student(batch.images.x0, 0.5).x0.square().mean())

        def boom(self, batch):
            return Loss(self.plain(batch).value * float("nan"))

    method = Bomb(Config(), Task(Denoiser(Line(), Flow(), Velocity()), SPEC))
    training = Training(method, batches(), config())
    training.advance(), training.advance()
    before = weights(method)
    with pytest.raises(NonFiniteLoss, match="loss of player .student. is nan.*step 3"):
        training.advance()
    assert torch.equal(weights(method), before) and training.step == 2 and training.can_be_saved()


class Faulty(Duel):
    """The student's gradient is NaN at the steps `faults`; the fake learns as always."""

    faults = ()

    def turns(self, step):
        yield Turn("fake", self.fake_loss)
        yield Turn("student", self.boom if step in self.faults else self.student_loss)

    def boom(self, batch):
        loss = self.student_loss(batch)
        # as a square root at 0: the loss is finite, its gradient is not
        trap = (0 * self.student.backbone.layer.bias[0]).sqrt()
        return Loss(loss.value + 0 * trap, loss.numbers)


def faulty(*faults):
    method = Faulty(Config(), Task(Denoiser(Line(), Flow(), Velocity()), SPEC))
    method.faults = faults
    return method


def test_an_update_that_is_not_finite_is_left_out():
    """All that the turn would change stays as it was, and the other player goes on."""
    training = Training(faulty(2), batches(), config(steps=6, nonfinite="skip"))
    training.advance(), training.advance()
    before = {name: value.clone() for name, value in training.state()[0].items()}
    progress = training.advance()
    changed = {name for name, value in training.state()[0].items() if not value.equal(before[name])}
    assert changed and all(
        name.startswith(("method.fake.", "optimizer.fake.")) for name in changed
    ), changed
    assert progress.numbers["student/skipped"] == 1
    assert all(math.isfinite(value) for value in progress.numbers.values())
    assert "student/loss" not in progress.numbers and "fake/loss" in progress.numbers
    assert "student/skipped" not in training.advance().numbers
    assert training.can_be_saved()
    with pytest.raises(NonFiniteLoss, match="gradient nan at step 3"):
        for _ in fit(faulty(2), batches(), config(steps=6)):
            pass


def test_a_dead_run_ends_after_100_updates_in_a_row():
    broken = faulty(*range(2, 200))
    training = Training(broken, batches(), config(steps=300, nonfinite="skip"))
    with pytest.raises(NonFiniteLoss, match="step 102, the 100th update in a row"):
        for _ in training:
            pass
    assert training.step == 101
    often = Training(faulty(*range(0, 240, 2)), batches(), config(steps=240, nonfinite="skip"))
    *_, last = often
    assert often.skips == {"student": (120, 0), "fake": (0, 0)} and last.step == 240


def test_the_count_of_updates_left_out_is_resumed():
    first = Training(faulty(1, 2), batches(), config(nonfinite="skip"))
    for _ in range(3):
        first.advance()
    tensors, note = first.state()
    second = Training(faulty(1, 2), batches(), config(nonfinite="skip"))
    second.restore(tensors, json.loads(json.dumps(note)))
    assert second.skips == {"student": (2, 2), "fake": (0, 0)}
    second.advance()
    assert second.skips["student"] == (2, 0)


def test_fit_yields_every_step():
    steps = [progress.step for progress in fit(duel(), batches(), config(steps=3))]
    assert steps == [1, 2, 3]


def test_bf16_keeps_weights_and_averages_in_float32():
    training = Training(duel(), batches(), config(precision="bf16"))
    numbers = training.advance().numbers
    assert all(math.isfinite(value) for value in numbers.values())
    assert all(p.dtype == torch.float32 for p in training.method.parameters())
    assert training.method.student.precision == "bf16"
    assert training.generator().denoiser.precision == "f32"


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"batch": 0},
        {"save_every": 0},
        {"micro_batch": -1},
        {"adapt": -1},
        {"seed": -1},
        *({"lr": value} for value in (0.0, -1.0, NAN, INF)),
        *({"clip": value} for value in (-1.0, NAN, INF)),
        *({"weight_decay": value} for value in (-0.1, NAN, INF)),
        *({"warmup": value} for value in (-1, 2.5, NAN, INF)),
        *({"betas": value} for value in ((1.0, 0.9), (0.9, -0.1), (0.9, NAN))),
        *({"ema_halflife": value} for value in (0.0, -5.0, NAN, INF, (500.0, 0.0), ())),
        *({"ema_rampup": value} for value in (-0.1, NAN, INF)),
    ],
)
def test_settings_out_of_range_are_refused(settings):
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"fit.{name}"):
        config(**settings)
    if name in PlayerConfig.__dataclass_fields__:
        with pytest.raises(InputError, match=f"fit.players.fake.{name}"):
            config(players={"fake": PlayerConfig(**{name: value})})
