"""The class score: how confident a classifier is, and how evenly its classes occur."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.errors import InputError


class ClassScore:
    """exp(mean_x KL(p(y|x) || p(y))), from a classifier's logits that arrive in batches.

    It ranges from 1 (the classifier gives all images the same probabilities) to the number of
    classes (it is certain of each image's class, and all classes are equally frequent). It is the
    Inception Score if the classifier is the standard Inception network (Salimans et al. 2016,
    arXiv:1606.03498). Published values are usually means over 10 splits, which are lower; this is
    the score of all images together. The running sums are in float64.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sum_p_log_p = 0.0
        self._sum_p = torch.zeros((), dtype=torch.float64)  # of each class

    def update(self, logits: Float[Tensor, "n k"]) -> None:
        """Add the logits of a batch of any size; all batches must have the same classes."""
        log_p = logits.detach().cpu().double().log_softmax(1)
        p = log_p.exp()
        self.count += len(logits)
        self._sum_p_log_p += (p * log_p).sum().item()
        self._sum_p = self._sum_p + p.sum(0)

    @property
    def value(self) -> float:
        """The score so far. Raises InputError if there are no images."""
        if self.count == 0:
            raise InputError("a class score needs at least one image; there are none")
        mean = self._sum_p / self.count
        divergence = self._sum_p_log_p / self.count - torch.xlogy(mean, mean).sum().item()
        return math.exp(max(divergence, 0.0))  # a negative value is rounding
