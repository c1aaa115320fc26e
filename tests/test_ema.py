import pytest
import torch
from torch import nn

from fewstep.ema import follow, halflife_decay


def test_half_of_the_old_average_is_left_after_a_halflife():
    average, source = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 8.0)
    nn.init.constant_(source.weight, 0.0)
    for _ in range(100):
        follow(average, source, decay=halflife_decay(10, 1000))
    assert float(average.weight.detach()) == pytest.approx(4.0, rel=1e-5)


def test_no_halflife_means_no_memory():
    average, source = nn.Linear(2, 2), nn.Linear(2, 2)
    follow(average, source, decay=halflife_decay(10, 0))
    assert torch.equal(average.weight, source.weight)


def test_buffers_are_copied():
    average, source = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    source.running_mean.fill_(3.0)
    follow(average, source, decay=0.9)
    assert average.running_mean.tolist() == [3.0, 3.0]
