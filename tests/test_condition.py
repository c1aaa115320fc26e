import torch

from fewstep.condition import Condition


def test_rows_dropped_labels_and_both_halves():
    cond = Condition(torch.tensor([3, 1, 2]))
    assert cond[1:].label.tolist() == [1, 2]
    assert cond.null().label.tolist() == [-1, -1, -1]
    assert cond.drop(torch.tensor([True, False, True])).label.tolist() == [-1, 1, -1]
    assert cond.concat(cond.null()).label.tolist() == [3, 1, 2, -1, -1, -1]
    assert len(cond.concat(cond)) == 6
