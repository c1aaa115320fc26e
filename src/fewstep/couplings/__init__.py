"""Couplings of noise and images: which noise is added to which image in training."""

from fewstep.couplings.base import Coupling, Independent, Pairing
from fewstep.couplings.minibatch import MinibatchOT
from fewstep.couplings.semidiscrete import SemidiscreteOT

__all__ = ["Coupling", "Independent", "MinibatchOT", "Pairing", "SemidiscreteOT"]
