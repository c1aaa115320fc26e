"""How sure a classifier is of each image, and how evenly its classes are met."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.errors import InputError


class ClassScore:
    """exp(mean_x KL(p(y|x) || p(y))), from a classifier's logits that arrive in batches.

    From 1 (all images alike to the classifier) to its number of classes (all sure, all classes
    equally often). Called Inception Score when the classifier is the standard Inception network
    (Salimans et al. 2016, arXiv:1606.03498), and then usually a mean over 10 splits, which is
    lower: this is of all images at once. Running sums in float64: memory of one row, and no batch
    size shows beyond rounding.
    """

    def __init__(self) -> None:
        self.count = 0
        self._certainty = 0.0  # sum of p log p
        self._mass = torch.zeros((), dtype=torch.float64)  # sum of p, of each class

    def update(self, logits: Float[Tensor, "n k"]) -> None:
        """Join a batch of any size; all batches have the same classes."""
        log_p = logits.detach().cpu().double().log_softmax(1)
        p = log_p.exp()
        self.count += len(logits)
        self._certainty += (p * log_p).sum().item()
        self._mass = self._mass + p.sum(0)

    @property
    def value(self) -> float:
        """The score so far. Raises InputError if no image was seen."""
        if self.count == 0:
            raise InputError("a class score needs at least one image and there is none")
        mean = self._mass / self.count
        divergence = self._certainty / self.count - torch.xlogy(mean, mean).sum().item()
        return math.exp(max(divergence, 0.0))  # below zero is rounding
