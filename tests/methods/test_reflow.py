"""Lines that do not cross: the loss can be zero, and one step is then enough."""

import pytest
import torch

import lines
from fewstep.evaluation import straightness
from fewstep.methods.base import Task
from fewstep.methods.reflow import Reflow, ReflowConfig
from fewstep.noise import noise_from_seeds
from fewstep.process import Flow


@pytest.mark.parametrize("student", [lines.on_lines, lines.ve])
def test_the_exact_velocity_of_the_lines_has_no_loss(student):
    method = Reflow(ReflowConfig(), Task(student(), lines.SPEC))
    assert float(method.student_loss(lines.batch()).value) < 1e-8


def test_the_loss_is_the_square_error_of_the_velocity():
    """A student that is off by a constant velocity has just that constant, squared."""

    class Off(lines.OnLines):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs) + 0.25

    student = lines.on_lines()
    student.backbone.__class__ = Off
    loss = Reflow(ReflowConfig(), Task(student, lines.SPEC)).student_loss(lines.batch())
    assert float(loss.value) == pytest.approx(0.25**2, rel=1e-4)


def test_times_cover_the_whole_line():
    student = lines.on_lines()
    Reflow(ReflowConfig(), Task(student, lines.SPEC)).student_loss(lines.batch(4000))
    t = student.backbone.asked[0]
    assert abs(float(t.mean()) - 0.5) < 0.02 and float(t.min()) < 0.01 and float(t.max()) > 0.99


def test_any_network_is_asked_under_flows_clock_where_lines_are_straight():
    made = Reflow(ReflowConfig(), Task(lines.ve(), lines.SPEC)).generator()
    assert isinstance(made.denoiser.process, Flow)
    noise = noise_from_seeds(range(5), lines.SHAPE)
    wanted = lines.MEAN + lines.SPREAD * noise
    for steps in (1, 2, 5):
        # EDM's largest noise level still holds 1/81 of the image, which the start leaves out
        torch.testing.assert_close(made(noise, steps=steps), wanted, atol=0.02, rtol=0.02)
    assert straightness(made, samples=50) < 1e-6
