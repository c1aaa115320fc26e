import torch
from sklearn.datasets import load_digits

from fewstep.data import load


def test_all_digits_with_scikit_learns_labels():
    digits = load("digits")
    assert len(digits) == 1797
    assert digits.shape == (1, 8, 8)
    assert digits.classes == 10
    counts = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.bincount(digits.labels).tolist() == counts
    assert digits.labels.tolist() == load_digits().target.tolist()


def test_values_are_the_nearest_of_255_steps():
    original = torch.from_numpy(load_digits().images).unsqueeze(1)
    images = load("digits").images
    assert torch.all(images[original == 0] == 0)
    assert torch.all(images[original == 16] == 255)
    assert (images - original * 255 / 16).abs().max() <= 0.5
