"""The class score against torchmetrics, numpy and the cases whose answer is known."""

import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.inception import InceptionScore

from fewstep.errors import InputError
from fewstep.metrics.distances.class_score import ClassScore


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score(*batches):
    result = ClassScore()
    for logits in batches:
        result.update(logits)
    return result.value


@pytest.mark.filterwarnings("ignore:Metric `InceptionScore` will save")
@pytest.mark.filterwarnings("ignore:std\\(\\)")  # of its one split
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_equals_torchmetrics(scale):
    logits = scale * normal(500, 10).double() + normal(10, seed=1)
    theirs = InceptionScore(torch.nn.Identity(), splits=1)
    for part in logits.split(64):
        theirs.update(part)
    assert score(logits) == pytest.approx(theirs.compute()[0].item(), rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
def test_equals_a_mean_of_divergences_by_scipy(shift):
    logits = 3 * normal(300, 7) + torch.linspace(0, 1, 7)
    p = scipy.special.softmax(logits.double().numpy(), 1)
    expected = np.exp(scipy.special.rel_entr(p, p.mean(0)).sum(1).mean())
    # float32 logits about 1e4 are themselves known to 5e-4
    tolerance = 1e-12 if shift == 0 else 1e-3
    assert score(logits + shift) == pytest.approx(expected, rel=tolerance)


@settings(max_examples=40, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60), max_size=8),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
)
def test_neither_batches_nor_order_show(cuts, seed, scale):
    logits = scale * normal(60, 5, seed=seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    whole = score(logits)
    assert score(*logits[order].tensor_split(sorted(cuts))) == pytest.approx(whole, rel=1e-12)


def test_images_all_alike_score_one():
    assert score(torch.zeros(50, 10)) == pytest.approx(1, abs=1e-12)
    assert score(normal(1, 10).repeat(50, 1)) == pytest.approx(1, abs=1e-12)
    assert score(1e4 * torch.eye(10)[:1].repeat(50, 1)) == 1
    for seed in range(20):  # rounding would put some below
        assert 1 <= score(normal(1, 1000, seed=seed).repeat(30, 1)) < 1 + 1e-12


@pytest.mark.parametrize("height", [1e4, 100.0])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_sure_and_balanced_scores_the_number_of_classes(classes, height):
    logits = 2 * height * torch.eye(classes) - height
    assert score(logits, logits) == pytest.approx(classes, rel=1e-12)


def test_classes_that_never_come_do_not_count():
    """Three of ten classes, at shares 1/2, 1/4, 1/4: exp of their entropy, 2^(3/2)."""
    logits = 1e4 * torch.eye(10)[[7, 7, 2, 4]]
    assert score(logits) == pytest.approx(2**1.5, rel=1e-12)


def test_no_image_is_refused():
    with pytest.raises(InputError, match="at least one image"):
        score()
    with pytest.raises(InputError, match="at least one image"):
        score(torch.zeros(0, 10))
