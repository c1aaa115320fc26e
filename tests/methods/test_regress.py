"""Regression on pairs: where images are clipped, what lies beyond the range is no error."""

import pytest
import torch

import lines
from fewstep.losses import AbsoluteError, PseudoHuber, SquaredError
from fewstep.methods.base import Task
from fewstep.methods.regress import Regress, RegressConfig, _nearest

STUDENT = torch.tensor([1.5, 0.8, 1.5, -1.5, -0.9, -1.5, 0.2, 1.5, -1.5, 1.0])
TEACHER = torch.tensor([1.2, 1.2, 0.9, -1.1, -1.1, -0.9, 0.5, -1.2, 1.2, 1.0])
# what remains to be learnt: nothing where both look white or black, else the way to what is seen
ERROR = torch.tensor([0.0, -0.2, 0.6, 0.0, 0.1, -0.6, -0.3, 2.5, -2.5, 0.0])


def test_of_the_images_that_look_like_the_teachers_the_nearest_is_the_target():
    torch.testing.assert_close(STUDENT - _nearest(STUDENT, TEACHER, 1.0), ERROR)
    torch.testing.assert_close(2 * STUDENT - _nearest(2 * STUDENT, 2 * TEACHER, 2.0), 2 * ERROR)


@pytest.mark.parametrize("loss", [SquaredError(), PseudoHuber(), AbsoluteError()])
def test_the_gradient_leads_to_what_is_seen(loss):
    """Also from beyond the wrong end, where a clamp of both images would have none."""
    x0 = STUDENT[None].clone().requires_grad_()
    loss(x0, _nearest(x0, TEACHER[None], 1.0)).sum().backward()
    assert torch.equal(x0.grad[0].sign(), ERROR.sign())


@pytest.mark.parametrize("clip", [None, 0.4, 1e3])
def test_the_loss_is_the_distance_to_that_target(clip):
    method = Regress(RegressConfig(clip=clip), Task(lines.on_lines(), lines.SPEC))
    method.student.backbone.forward = lambda x, level, **_: 0 * x  # velocity 0: x0 is the noise
    batch = lines.batch(50)
    noise, x0 = batch.pairs.noise, batch.pairs.x0
    target = x0 if clip is None else _nearest(noise, x0, clip)
    expected = (noise - target).square().mean()
    torch.testing.assert_close(method.student_loss(batch).value, expected)
    assert (clip == 0.4) == (not torch.equal(target, x0))
