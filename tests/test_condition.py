import torch

from fewstep.condition import Condition, with_augment_labels


def test_rows_dropped_labels_and_both_halves():
    cond = Condition(torch.tensor([3, 1, 2]))
    assert cond[1:].label.tolist() == [1, 2]
    assert cond.null().label.tolist() == [-1, -1, -1]
    assert cond.drop(torch.tensor([True, False, True])).label.tolist() == [-1, 1, -1]
    assert cond.concat(cond.null()).label.tolist() == [3, 1, 2, -1, -1, -1]
    assert len(cond.concat(cond)) == 6


def test_labels_of_augmentation_stay_with_their_rows():
    labels = torch.arange(27.0).reshape(3, 9)
    cond = with_augment_labels(Condition(torch.tensor([3, 1, 2])), labels)
    drop = torch.tensor([True, False, True])
    for other in (cond.null(), cond.drop(drop), cond.to("cpu")):
        assert other.augment_labels is not None and other.augment_labels.equal(labels)
    rows = cond.drop(drop)[1:]
    assert rows.label.tolist() == [1, -1] and rows.augment_labels.equal(labels[1:])
    both = cond.concat(rows)
    assert both.label.tolist() == [3, 1, 2, 1, -1]
    assert both.augment_labels.equal(torch.cat([labels, labels[1:]]))


def test_augmented_images_without_classes_have_no_label():
    labels = torch.arange(18.0).reshape(2, 9)
    cond = with_augment_labels(None, labels)
    assert len(cond) == 2 and cond.label is None
    for other in (cond.null(), cond.drop(torch.tensor([True, False])), cond.to("cpu")):
        assert other.label is None and other.augment_labels.equal(labels)
    both = cond.concat(cond[:1])
    assert both.label is None and both.augment_labels.equal(torch.cat([labels, labels[:1]]))
