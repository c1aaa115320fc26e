"""A k-step student: asked at exactly its k times, and stepped with the weights of its lines."""

from copy import deepcopy
from dataclasses import dataclass

import pytest
import torch

import lines
import toy
from fewstep.errors import InputError
from fewstep.methods.base import Task
from fewstep.methods.kstep import Kstep, KstepConfig
from fewstep.noise import noise_from_seeds
from fewstep.sampling import Step


def kstep(student=None, **settings):
    return Kstep(KstepConfig(**settings), Task(student or lines.on_lines(), lines.SPEC))


@pytest.mark.parametrize("k", [1, 2, 4, 8])
def test_it_is_trained_at_just_the_times_at_which_it_is_sampled(k):
    method = kstep(k=k)
    method.student_loss(lines.batch(4000))
    (trained,) = method.student.backbone.asked
    wanted = [(k - i) / k for i in range(k)]
    times, counts = torch.unique(trained, return_counts=True)
    torch.testing.assert_close(times.flip(0), torch.tensor(wanted))
    assert (counts / 4000 - 1 / k).abs().max() < 0.03
    made = method.generator()
    assert made.grid.counts == (k,)
    method.student.backbone.asked.clear()
    made(noise_from_seeds(range(3), lines.SHAPE), steps=k)
    sampled = [float(t[0]) for t in method.student.backbone.asked]
    assert sampled == pytest.approx(wanted)


@pytest.mark.parametrize("student", [lines.on_lines, lines.ve])
@pytest.mark.parametrize("on", ["velocity", "x0"])
@pytest.mark.parametrize("k", [1, 4])
def test_the_exact_student_has_no_loss_on_the_line(student, on, k):
    method = kstep(student(), k=k, on=on)
    limit = 1e-8 if student is lines.on_lines else 2e-3  # its first time is noise alone
    assert float(method.student_loss(lines.batch()).value) < limit


def test_where_the_span_ends_early_the_start_is_the_samplers():
    """EDM's last time is 80/81: sampling starts from sigma·noise there, and so does training."""

    class ExtractorOutput(lines.OnLines):
        def forward(self, x, level, **kwargs):
            self.seen = self.native(x, level.reshape(-1, 1, 1))
            return super().forward(x, level, **kwargs)

    method = kstep(lines.ve(), k=1)
    network = method.student.backbone
    network.__class__ = ExtractorOutput
    batch = lines.batch(5)
    method.student_loss(batch)
    _, sigma, x_t = network.seen  # in the network's own world, where alpha is 1
    torch.testing.assert_close(x_t, sigma * batch.pairs.noise, rtol=1e-4, atol=1e-4)


def test_an_error_of_the_image_is_t_times_that_of_the_velocity():
    class Off(lines.OnLines):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) + 0.25

    losses = {}
    for on in ("velocity", "x0"):
        method = kstep(k=4, on=on)
        method.student.backbone.__class__ = Off
        losses[on] = float(method.student_loss(lines.batch(4000)).value)
        (t,) = method.student.backbone.asked
    assert losses["velocity"] == pytest.approx(0.25**2, rel=1e-4)
    assert losses["x0"] == pytest.approx(float((0.25 * t).square().mean()), rel=1e-4)


@dataclass(frozen=True)
class SeedsRule(Step):
    """The weights 1/4, 1/2, 3/4, 1 of the four-step student that this method corrects: it moves
    1 − s of the way to the image, not (t − s)/t."""

    def __call__(self, context, x_t, t, s):
        x0 = context.predict(x_t, t).x0
        return (x0, None) if s is None else (x_t + (1 - s) * (x0 - x_t), None)


def test_euler_stays_on_the_line_and_the_seeds_rule_leaves_it():
    """After each step as much noise is left as the student is trained for at the next time: the
    other rule leaves 0.375 and 0.094 in place of 0.5 and 0.25."""
    made = kstep(k=4).generator()
    noise = noise_from_seeds(range(200), lines.SHAPE)
    x0 = lines.MEAN + lines.SPREAD * noise

    def shares(generator):
        """Of noise against image, by least squares along the line."""
        line = noise - x0
        states = list(generator.path(noise, steps=4))
        return [float(((x - x0) * line).sum() / line.square().sum()) for x in states]

    assert shares(made) == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-5)
    # its own second and third answers are off the line already; the share of noise it keeps is
    keeps = [1.0]
    for s in (0.75, 0.5, 0.25):
        keeps.append(keeps[-1] * s)
    assert keeps[2:] == pytest.approx([0.375, 0.09375])
    assert shares(made.with_sampler(step=SeedsRule()))[2] == pytest.approx(0.375, abs=0.03)


def test_the_right_weights_beat_the_seeds_on_a_trained_student(teacher, pairs):
    student = deepcopy(teacher.denoiser)
    method = Kstep(KstepConfig(k=4), Task(student, toy.SPEC))
    made = toy.train(method, pairs, steps=200, batch=128, lr=2e-3)
    truth = toy.batches(method, pairs, batch=4000, seed=1).step(0)[0].pairs

    def error(generator):
        """From the teacher's own image of the same noise."""
        with torch.inference_mode():
            return float((generator(truth.noise, steps=4) - truth.x0).square().mean())

    right, wrong = error(made), error(made.with_sampler(step=SeedsRule()))
    assert right < 0.8 * wrong


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="method.k is 0"):
        kstep(k=0)
